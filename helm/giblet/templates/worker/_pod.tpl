{{/* The workers' pod template. Nothing in it depends on workers.replicas, so that scaling leaves it alone. */}}
{{- define "giblet.workerPod" -}}
metadata:
  labels:
    {{- include "giblet.podLabels" (dict "root" . "component" "worker") | nindent 4 }}
  annotations:
    {{- include "giblet.podAnnotations" (dict "root" . "container" "pytorch") | nindent 4 }}
spec:
  serviceAccountName: {{ include "giblet.serviceAccountName" . }}
  automountServiceAccountToken: false
  {{- include "giblet.podBasics" . | nindent 2 }}
  terminationGracePeriodSeconds: {{ int .Values.workers.terminationGracePeriodSeconds }}
  {{- with .Values.scheduling.schedulerName }}
  schedulerName: {{ . }}
  {{- end }}
  {{- with .Values.scheduling.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.scheduling.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with include "giblet.placement" .Values }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- include "giblet.yaml" . | nindent 4 }}
  {{- end }}
  {{- if or .Values.extraInitContainers (ne .Values.data.prepare "none") }}
  initContainers:
    {{- with include "giblet.entries" .Values.extraInitContainers }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- if ne .Values.data.prepare "none" }}
    - name: prepare
      {{- include "giblet.container" . | nindent 6 }}
      # To the operator every failure of an init container looks retryable. The worker itself comes to the same end,
      # with the exit code that says whether a retry makes sense.
      command: [sh, -c]
      args: ["giblet prepare --publish || echo \"prepare ended with $?; giblet launch decides what follows\" >&2"]
      resources:
        {{- include "giblet.prepareResources" . | nindent 8 }}
      volumeMounts:
        {{- include "giblet.mounts" . | nindent 8 }}
        {{- with include "giblet.dataMount" . }}
        {{- . | nindent 8 }}
        {{- end }}
    {{- end }}
  {{- end }}
  containers:
    - name: pytorch
      {{- include "giblet.container" . | nindent 6 }}
        - {name: GIBLET_GRACE_SECONDS, value: {{ .Values.workers.terminationGracePeriodSeconds | int | quote }}}
        - {name: TORCH_ELASTIC_SHUTDOWN_TIMEOUT, value: {{ .Values.workers.shutdownTimeoutSeconds | int | quote }}}
      command: [giblet]
      args: [launch]
      {{- with include "giblet.metricsPorts" . }}
      {{- . | nindent 6 }}
      {{- end }}
      resources:
        {{- include "giblet.workerResources" . | nindent 8 }}
      volumeMounts:
        {{- include "giblet.mounts" . | nindent 8 }}
        {{- with include "giblet.dataMount" . }}
        {{- . | nindent 8 }}
        {{- end }}
        - {name: shm, mountPath: /dev/shm}
  volumes:
    {{- include "giblet.volumes" (dict "root" .) | nindent 4 }}
    {{- with include "giblet.dataVolume" . }}
    {{- . | nindent 4 }}
    {{- end }}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ .Values.workers.sharedMemory }}}
{{- end -}}

{{/* The worker's requests and limits: what the values say, and the GPUs. */}}
{{- define "giblet.workerResources" -}}
{{- $resources := deepCopy (.Values.resources | default dict) -}}
{{- if gt (int .Values.workers.gpusPerWorker) 0 -}}
{{- $gpus := dict .Values.workers.gpuResource (toString (int .Values.workers.gpusPerWorker)) -}}
{{- $_ := set $resources "limits" (merge $gpus ($resources.limits | default dict)) -}}
{{- end -}}
{{- include "giblet.yaml" $resources -}}
{{- end -}}

{{- define "giblet.prepareResources" -}}
{{- $resources := .Values.data.resources -}}
{{- if not $resources -}}
{{- $resources = deepCopy (.Values.resources | default dict) -}}
{{- range $kind, $amounts := $resources -}}
{{- if kindIs "map" $amounts -}}
{{- $_ := unset $amounts $.Values.workers.gpuResource -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- include "giblet.yaml" $resources -}}
{{- end -}}
