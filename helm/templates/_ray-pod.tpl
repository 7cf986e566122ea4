{{/* A Ray pod of the standing cluster; a test holds it equal to what inpaint/cluster/pods.py builds for a run. */}}
{{- define "inpaint.rayPod" -}}
{{- $head := eq .component "head" -}}
{{- $spot := and (not $head) (default false .shape.spot) -}}
{{- $values := .root.Values -}}
{{- $grace := add (int $values.shutdown.drainSeconds) (int $values.shutdown.checkpointSeconds) 15 -}}
{{- $window := add (int $values.shutdown.drainSeconds) (int $values.shutdown.checkpointSeconds) -}}
metadata:
  labels:
    {{- include "inpaint.podLabels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
    {{- if not $head }}
    inpaint/spot: {{ $spot | quote }}
    {{- end }}
    {{- with .shape.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if or (not $spot) .shape.annotations }}
  annotations:
    {{- if not $spot }}
    cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
    karpenter.sh/do-not-disrupt: "true"
    {{- end }}
    {{- with .shape.annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
spec:
  serviceAccountName: {{ include "inpaint.account" (list .root .component) }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $grace }}
  securityContext:
    {{- include "inpaint.podSecurityContext" .root | nindent 4 }}
  {{- with $values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- range $field := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" "schedulerName" "runtimeClassName" }}
  {{- with index $.shape $field }}
  {{ $field }}: {{ toJson . }}
  {{- end }}
  {{- end }}
  {{- with .shape.initContainers }}
  initContainers:
    {{- include "inpaint.siteContainers" (dict "root" $.root "containers" .) | nindent 4 }}
  {{- end }}
  containers:
    - name: ray-{{ .component }}
      image: {{ include "inpaint.image" .root }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      {{- if $head }}
      ports:
        - {containerPort: 6379, name: gcs-server}
        - {containerPort: 8265, name: dashboard}
        - {containerPort: 10001, name: client}
        - {containerPort: 8080, name: metrics}
      {{- else }}
      ports:
        - {containerPort: 8080, name: metrics}
      {{- end }}
      {{- if $spot }}
      lifecycle:
        preStop:
          exec:
            command:
              - /bin/bash
              - -c
              - "ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'the node is being taken away' --deadline-remaining-seconds {{ $window }}; sleep {{ int $values.shutdown.checkpointSeconds }}"
      {{- end }}
      env:
        - {name: PYTHONUNBUFFERED, value: "1"}
        - {name: RAY_USAGE_STATS_ENABLED, value: "0"}
        - {name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, value: {{ int $values.shutdown.drainSeconds | quote }}}
        - {name: RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S, value: {{ int $values.timeouts.workerStartSeconds | quote }}}
        - {name: RAY_TRAIN_COLLECTIVE_TIMEOUT_S, value: {{ int $values.timeouts.collectiveSeconds | quote }}}
        - {name: TORCH_NCCL_ASYNC_ERROR_HANDLING, value: "1"}
        - {name: WANDB_DIR, value: /tmp}
        {{- if $head }}
        - {name: RAY_DASHBOARD_MAX_EVENTS_TO_CACHE, value: {{ int .shape.dashboardEvents | quote }}}
        - {name: RAY_JOB_STOP_SIGNAL, value: SIGINT}
        - {name: RAY_JOB_STOP_WAIT_TIME_S, value: {{ $window | quote }}}
        - {name: TORCH_HOME, value: /tmp/torch}
        {{- else }}
        - {name: TORCHINDUCTOR_CACHE_DIR, value: /cache/inductor}
        - {name: TRITON_CACHE_DIR, value: /cache/triton}
        - {name: NUMBA_CACHE_DIR, value: /cache/numba}
        - {name: TORCH_HOME, value: /cache/torch}
        - {name: TMPDIR, value: /cache}
        - {name: RAY_TMPDIR, value: /tmp}
        {{- end }}
        {{- include "inpaint.storeEnv" .root | nindent 8 }}
        {{- with .shape.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with .shape.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      resources:
        {{- range $side := list "requests" "limits" }}
        {{ $side }}:
          cpu: {{ $.shape.cpus | quote }}
          memory: {{ $.shape.memory }}
          {{- if $.shape.gpus }}
          {{ $.shape.gpuResource | default "nvidia.com/gpu" }}: {{ int $.shape.gpus | quote }}
          {{- end }}
        {{- end }}
      securityContext:
        {{- include "inpaint.securityContext" .root | nindent 8 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: home, mountPath: /home/inpaint}
        - {name: shm, mountPath: /dev/shm}
        {{- if not $head }}
        - {name: cache, mountPath: /cache}
        {{- end }}
        {{- if $values.store.existingClaim }}
        - {name: store, mountPath: {{ $values.store.mountPath }}}
        {{- end }}
        {{- if $values.s3.caBundleConfigMap }}
        - {name: ca, mountPath: /etc/inpaint-ca, readOnly: true}
        {{- end }}
        {{- with .shape.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with .shape.sidecars }}
    {{- include "inpaint.siteContainers" (dict "root" $.root "containers" .) | nindent 4 }}
    {{- end }}
  volumes:
    - {name: tmp, emptyDir: {}}
    - {name: home, emptyDir: {}}
    - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ .shape.shm }}}}
    {{- if not $head }}
    {{- $cache := default dict .shape.cache }}
    {{- if $cache.storageClass }}
    - name: cache
      ephemeral:
        volumeClaimTemplate:
          spec:
            accessModes: [ReadWriteOnce]
            storageClassName: {{ $cache.storageClass }}
            resources: {requests: {storage: {{ $cache.size | default "60Gi" }}}}
    {{- else }}
    - {name: cache, emptyDir: {sizeLimit: {{ $cache.size | default "60Gi" }}}}
    {{- end }}
    {{- end }}
    {{- if $values.store.existingClaim }}
    - {name: store, persistentVolumeClaim: {claimName: {{ $values.store.existingClaim }}}}
    {{- end }}
    {{- with $values.s3.caBundleConfigMap }}
    - {name: ca, configMap: {name: {{ . }}}}
    {{- end }}
    {{- with .shape.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* A site's own containers, under our security context. */}}
{{- define "inpaint.siteContainers" -}}
{{- $context := include "inpaint.securityContext" .root | fromYaml -}}
{{- $hardened := list -}}
{{- range .containers }}{{- $hardened = append $hardened (set (deepCopy .) "securityContext" $context) -}}{{- end -}}
{{- toYaml $hardened -}}
{{- end -}}
