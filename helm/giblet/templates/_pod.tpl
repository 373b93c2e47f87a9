{{/* What all pods of the chart have in common. */}}

{{- define "giblet.podSecurityContext" -}}
{{- $default := dict "runAsNonRoot" true "runAsUser" 65532 "runAsGroup" 65532 "fsGroup" 65532 "fsGroupChangePolicy" "OnRootMismatch" "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- include "giblet.yaml" (mergeOverwrite $default (.Values.podSecurityContext | default dict)) -}}
{{- end -}}

{{- define "giblet.securityContext" -}}
{{- $default := dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "capabilities" (dict "drop" (list "ALL")) -}}
{{- include "giblet.yaml" (mergeOverwrite $default (.Values.securityContext | default dict)) -}}
{{- end -}}

{{/* Where programs find what they need; never by guessing names. */}}
{{- define "giblet.env" -}}
- {name: GIBLET_CONFIG, value: /etc/giblet/giblet.yaml}
- name: GIBLET_POD
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: GIBLET_NODE
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: GIBLET_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- {name: GIBLET_JOB, value: {{ include "giblet.fullname" . }}}
- {name: GIBLET_CHART, value: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}}
- {name: GIBLET_IMAGE, value: {{ include "giblet.image" . | quote }}}
- {name: HOME, value: /tmp}
- {name: XDG_CACHE_HOME, value: /cache}
- {name: HF_HOME, value: /cache/huggingface}
{{- if .Values.data.hubOffline }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
{{- include "giblet.s3Env" . }}
{{- with include "giblet.entries" .Values.extraEnv }}
{{ . }}
{{- end }}
{{- end -}}

{{- define "giblet.s3Env" -}}
{{- $s3 := .Values.s3 -}}
{{- $secret := include "giblet.s3Secret" . -}}
{{- if $secret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ $s3.accessKeyIdKey }}}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ $s3.secretAccessKeyKey }}}}
{{- with $s3.sessionTokenKey }}
- name: AWS_SESSION_TOKEN
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ . }}}}
{{- end }}
{{- end }}
{{- if or $s3.ca.secret $s3.ca.configMap }}
- {name: AWS_CA_BUNDLE, value: {{ include "giblet.caFile" . }}}
{{- end }}
{{- end -}}

{{/* The secret's name, if there is one. A hook has a copy of its own, `.hookSecret`. */}}
{{- define "giblet.s3Secret" -}}
{{- if .Values.s3.existingSecret -}}
{{- .Values.s3.existingSecret -}}
{{- else if .Values.s3.accessKeyId -}}
{{- .hookSecret | default (printf "%s-s3" (include "giblet.fullname" .)) -}}
{{- end -}}
{{- end -}}

{{- define "giblet.s3SecretData" -}}
{{ .Values.s3.accessKeyIdKey }}: {{ .Values.s3.accessKeyId | quote }}
{{ .Values.s3.secretAccessKeyKey }}: {{ .Values.s3.secretAccessKey | quote }}
{{- end -}}

{{/* Image, security and environment of a container of ours; more `env` entries may follow it. */}}
{{- define "giblet.container" -}}
image: {{ include "giblet.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- include "giblet.securityContext" . | nindent 2 }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- include "giblet.yaml" . | nindent 2 }}
{{- end }}
env:
  {{- include "giblet.env" . | nindent 2 }}
{{- end -}}

{{/* The port that Prometheus finds by its name. */}}
{{- define "giblet.metricsPorts" -}}
{{- with include "giblet.metricsPort" . -}}
ports:
  - {name: metrics, containerPort: {{ . }}}
{{- end }}
{{- end -}}

{{/* Empty where the metrics are turned off. */}}
{{- define "giblet.metricsPort" -}}
{{- with dig "telemetry" "metrics_port" 9464 .Values.config | int -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{- define "giblet.mounts" -}}
# A subPath never changes under a running pod: a release's new configuration reaches new pods only.
- {name: config, mountPath: /etc/giblet/giblet.yaml, subPath: giblet.yaml, readOnly: true}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /cache}
{{- if or .Values.s3.ca.secret .Values.s3.ca.configMap }}
- {name: s3-ca, mountPath: /etc/giblet/ca, readOnly: true}
{{- end }}
{{- with include "giblet.entries" .Values.extraVolumeMounts }}
{{ . }}
{{- end }}
{{- end -}}

{{- define "giblet.dataMount" -}}
{{- with .Values.data }}
{{- if .existingClaim -}}
- name: data
  mountPath: {{ .mountPath }}
  readOnly: true
  {{- with .subPath }}
  subPath: {{ . }}
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Called with (dict "root" $ "config" the ConfigMap's name "cache" whether the cache is the shared one). */}}
{{- define "giblet.volumes" -}}
{{- $root := .root -}}
- name: config
  configMap: {name: {{ .config | default (printf "%s-config" (include "giblet.fullname" $root)) }}}
- name: tmp
  emptyDir: {sizeLimit: {{ $root.Values.cache.tmpSizeLimit }}}
- name: cache
  {{- if $root.Values.cache.existingClaim }}
  persistentVolumeClaim: {claimName: {{ $root.Values.cache.existingClaim }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ $root.Values.cache.sizeLimit }}}
  {{- end }}
{{- with $root.Values.s3.ca.secret }}
- name: s3-ca
  secret: {secretName: {{ . }}, items: [{key: {{ $root.Values.s3.ca.key }}, path: ca.crt}]}
{{- end }}
{{- with $root.Values.s3.ca.configMap }}
- name: s3-ca
  configMap: {name: {{ . }}, items: [{key: {{ $root.Values.s3.ca.key }}, path: ca.crt}]}
{{- end }}
{{- with include "giblet.entries" $root.Values.extraVolumes }}
{{ . }}
{{- end }}
{{- end -}}

{{- define "giblet.dataVolume" -}}
{{- with .Values.data.existingClaim -}}
- name: data
  persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
{{- end }}
{{- end -}}

{{/* First lines of a pod's spec. */}}
{{- define "giblet.podBasics" -}}
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- include "giblet.yaml" . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "giblet.podSecurityContext" . | nindent 2 }}
{{- with .Values.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with .Values.dnsConfig }}
dnsConfig:
  {{- include "giblet.yaml" . | nindent 2 }}
{{- end }}
{{- with .Values.hostAliases }}
hostAliases:
  {{- include "giblet.yaml" . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* nodeSelector, tolerations and affinity of a part of the values, as far as they are set. */}}
{{- define "giblet.placement" -}}
{{- $placement := dict -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" -}}
{{- with index $ $key -}}
{{- $_ := set $placement $key . -}}
{{- end -}}
{{- end -}}
{{- if $placement -}}
{{- include "giblet.yaml" $placement -}}
{{- end -}}
{{- end -}}
