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
    {{- if $verify.signing.existingSecret }}
    args: [gate, {{ printf "--set=verify.signing_key=/etc/giblet/signing/%s" $verify.signing.key | quote }}]
    {{- else }}
    args: [gate]
    {{- end }}
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
      {{- if $verify.signing.existingSecret }}
      - {name: signing, mountPath: /etc/giblet/signing, readOnly: true}
      {{- end }}
volumes:
  {{- include "giblet.volumes" (dict "root" .) | nindent 2 }}
  {{- with $verify.signing }}
  {{- if .existingSecret }}
  - name: signing
    secret: {secretName: {{ .existingSecret }}, defaultMode: 0440, items: [{key: {{ .key }}, path: {{ .key }}}]}
  {{- end }}
  {{- end }}
  {{- if $verify.mountData }}
  {{- include "giblet.dataVolume" . | nindent 2 }}
  {{- end }}
{{- end -}}
