{{/* Names and labels, each in one place. */}}

{{- define "inpaint.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "inpaint.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "inpaint.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "inpaint.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "inpaint.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* What all pods of a release carry; NetworkPolicies, budgets and monitors select by it. */}}
{{- define "inpaint.selector" -}}
app.kubernetes.io/name: {{ include "inpaint.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "inpaint.podLabels" -}}
{{- $own := include "inpaint.selector" . | fromYaml -}}
{{- $own = set $own "app.kubernetes.io/version" (.Chart.AppVersion | toString) -}}
{{- merge $own .Values.commonLabels | toYaml -}}
{{- end -}}

{{/* metadata of an object of the chart; call with (dict "root" $ "suffix" "x" "component" "y") */}}
{{- define "inpaint.metadata" -}}
name: {{ include "inpaint.fullname" .root }}{{ with .suffix }}-{{ . }}{{ end }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "inpaint.podLabels" .root | nindent 2 }}
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  app.kubernetes.io/component: {{ .component }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (deepCopy (default dict .annotations)) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Name of a service account; call with (list $ "head") */}}
{{- define "inpaint.account" -}}
{{- $root := index . 0 -}}{{- $who := index . 1 -}}
{{- index $root.Values.serviceAccounts $who "name" | default (printf "%s-%s" (include "inpaint.fullname" $root) $who) -}}
{{- end -}}

{{/* Port of a URL; call with the URL */}}
{{- define "inpaint.port" -}}
{{- with . -}}
{{- $url := urlParse . -}}
{{- if contains ":" $url.host -}}{{ splitList ":" $url.host | last }}{{- else if eq $url.scheme "http" -}}80{{- else -}}443{{- end -}}
{{- end -}}
{{- end -}}

{{- define "inpaint.egressPorts" -}}
{{- $ports := list -}}
{{- range .Values.networkPolicy.egressPorts }}{{- $ports = append $ports (int .) -}}{{- end -}}
{{- range list .Values.s3.endpoint .Values.wandb.baseUrl }}
{{- with include "inpaint.port" . }}{{- $ports = append $ports (int .) -}}{{- end -}}
{{- end -}}
{{- range uniq $ports }}
- {port: {{ . }}, protocol: TCP}
{{- end -}}
{{- end -}}

{{/* The way to whoever gives pods their keys where no Secret does. */}}
{{- define "inpaint.credentialEndpoints" -}}
{{- if not .Values.s3.existingSecret -}}
{{- with .Values.networkPolicy.credentialEndpoints -}}
- to:
    {{- range . }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
  ports:
    - {port: 80, protocol: TCP}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "inpaint.dns" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end -}}

{{/* PodSecurity `restricted`; the same as inpaint/cluster/pods.py, held equal by a test. */}}
{{- define "inpaint.securityContext" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: {{ int .Values.runAsUser }}
runAsGroup: {{ int .Values.runAsUser }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "inpaint.podSecurityContext" -}}
fsGroup: {{ int .Values.fsGroup }}
fsGroupChangePolicy: OnRootMismatch
runAsNonRoot: true
runAsUser: {{ int .Values.runAsUser }}
runAsGroup: {{ int .Values.runAsUser }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "inpaint.isConnected" -}}
{{- if .Capabilities.APIVersions.Has "v1/Pod" -}}true{{- end -}}
{{- end -}}
