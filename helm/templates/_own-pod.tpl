{{/* A pod of the chart itself that talks to the API server as the submitter; call with (dict "root" $ "name" "x" "command" (list ...)) */}}
{{- define "inpaint.ownPod" -}}
serviceAccountName: {{ include "inpaint.account" (list .root "submitter") }}
automountServiceAccountToken: true
enableServiceLinks: false
restartPolicy: Never
securityContext:
  {{- include "inpaint.podSecurityContext" .root | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .root.Values.submitter.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.submitter.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - name: {{ .name }}
    image: {{ include "inpaint.image" .root }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    command: {{ .command | toJson }}
    env:
      {{- include "inpaint.storeEnv" .root | nindent 6 }}
    securityContext:
      {{- include "inpaint.securityContext" .root | nindent 6 }}
    resources:
      requests: {cpu: 100m, memory: 512Mi}
      limits: {cpu: "1", memory: 512Mi}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      - {name: home, mountPath: /home/inpaint}
      {{- if .root.Values.store.existingClaim }}
      - {name: store, mountPath: {{ .root.Values.store.mountPath }}}
      {{- end }}
      {{- if .root.Values.s3.caBundleConfigMap }}
      - {name: ca, mountPath: /etc/inpaint-ca, readOnly: true}
      {{- end }}
volumes:
  - {name: tmp, emptyDir: {}}
  - {name: home, emptyDir: {}}
  {{- if .root.Values.store.existingClaim }}
  - {name: store, persistentVolumeClaim: {claimName: {{ .root.Values.store.existingClaim }}}}
  {{- end }}
  {{- with .root.Values.s3.caBundleConfigMap }}
  - {name: ca, configMap: {name: {{ . }}}}
  {{- end }}
{{- end -}}

{{/* How a pod reaches the store: places by value, keys by reference. */}}
{{- define "inpaint.storeEnv" -}}
- {name: HOME, value: /home/inpaint}
{{- with .Values.store.root }}
- {name: INPAINT_ROOT, value: {{ . | quote }}}
{{- end }}
{{- with .Values.s3.endpoint }}
- {name: AWS_ENDPOINT_URL_S3, value: {{ . | quote }}}
{{- end }}
{{- with .Values.s3.region }}
- {name: AWS_REGION, value: {{ . | quote }}}
- {name: AWS_DEFAULT_REGION, value: {{ . | quote }}}
{{- end }}
{{- if .Values.s3.caBundleConfigMap }}
- {name: AWS_CA_BUNDLE, value: /etc/inpaint-ca/ca.crt}
{{- end }}
{{- with .Values.wandb.baseUrl }}
- {name: WANDB_BASE_URL, value: {{ . | quote }}}
{{- end }}
{{- range $name, $value := .Values.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- with .Values.s3 }}
{{- if .existingSecret }}
- {name: AWS_ACCESS_KEY_ID, valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .accessKeyIdKey }}}}}
- {name: AWS_SECRET_ACCESS_KEY, valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .secretAccessKeyKey }}}}}
{{- if .sessionTokenKey }}
- {name: AWS_SESSION_TOKEN, valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .sessionTokenKey }}}}}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.wandb }}
{{- if .existingSecret }}
- {name: WANDB_API_KEY, valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .apiKeyKey }}}}}
{{- end }}
{{- end }}
{{- end -}}
