{{- define "giblet.verifyPodSpec" -}}
{{- $verify := .Values.verify -}}
restartPolicy: Never
serviceAccountName: {{ include "giblet.verifyServiceAccountName" . }}
automountServiceAccountToken: true
{{- include "giblet.podBasics" . | nindent 0 }}
{{- with $verify.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with include "giblet.placement" $verify }}
{{- . | nindent 0 }}
{{- end }}
containers:
  - name: verify
    {{- include "giblet.container" . | nindent 4 }}
    command: [giblet]
    args: [gate]
    {{- with include "giblet.metricsPorts" . }}
    {{- . | nindent 4 }}
    {{- end }}
    resources:
      {{- include "giblet.yaml" $verify.resources | nindent 6 }}
    volumeMounts:
      {{- include "giblet.mounts" . | nindent 6 }}
      {{- if $verify.mountData }}
      {{- include "giblet.dataMount" . | nindent 6 }}
      {{- end }}
volumes:
  {{- include "giblet.volumes" (dict "root" .) | nindent 2 }}
  {{- if $verify.mountData }}
  {{- include "giblet.dataVolume" . | nindent 2 }}
  {{- end }}
{{- end -}}
