{{/* The PyTorchJob's settings above its pods. */}}
{{- define "giblet.jobPolicies" -}}
{{- $workers := .Values.workers -}}
nprocPerNode: {{ include "giblet.processes" . | quote }}
elasticPolicy:
  rdzvBackend: c10d
  minReplicas: {{ int $workers.min }}
  maxReplicas: {{ int $workers.max }}
  maxRestarts: {{ int $workers.maxRestarts }}
  {{- if include "giblet.rendezvousPod" . }}
  rdzvHost: {{ include "giblet.fullname" . }}-rendezvous
  rdzvPort: {{ int .Values.rendezvous.port }}
  rdzvConf: [{key: is_host, value: "0"}]
  {{- end }}
runPolicy:
  cleanPodPolicy: Running
  {{- if eq $workers.restartPolicy "OnFailure" }}
  backoffLimit: {{ $workers.backoffLimit | default 1000 | int }}
  {{- end }}
  {{- if not (kindIs "invalid" $workers.activeDeadlineSeconds) }}
  activeDeadlineSeconds: {{ int $workers.activeDeadlineSeconds }}
  {{- end }}
  {{- if not (kindIs "invalid" $workers.ttlSecondsAfterFinished) }}
  ttlSecondsAfterFinished: {{ int $workers.ttlSecondsAfterFinished }}
  {{- end }}
  {{- if not (kindIs "invalid" .Values.scheduling.suspend) }}
  suspend: {{ .Values.scheduling.suspend }}
  {{- end }}
  {{- with .Values.scheduling.gang }}
  schedulingPolicy:
    {{- include "giblet.yaml" . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Whatever a pod that runs cannot follow. Equal hash: the same run. */}}
{{- define "giblet.templateHash" -}}
{{- list (include "giblet.config" .) (include "giblet.jobPolicies" .) .Values.workers.restartPolicy (include "giblet.workerPod" .) (include "giblet.verifyPodSpec" .) | join "\n" | sha256sum | trunc 16 -}}
{{- end -}}
