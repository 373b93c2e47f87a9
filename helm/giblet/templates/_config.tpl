{{/* The trainer's configuration: the values' `config`, completed by what only the chart knows. */}}

{{- define "giblet.runName" -}}
{{- dig "run" "name" "" .Values.config | default (include "giblet.fullname" .) -}}
{{- end -}}

{{- define "giblet.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $_ := set $config "run" (merge (dict "name" (include "giblet.runName" .)) ($config.run | default dict)) -}}
{{- $data := $config.data | default dict -}}
{{- if not (hasPrefix "/cache/" (toString $data.cache_dir)) -}}
{{- $_ := set $data "cache_dir" "/cache/datasets" -}}
{{- end -}}
{{- $_ := set $config "data" $data -}}
{{- if or .Values.s3.ca.secret .Values.s3.ca.configMap -}}
{{- $_ := set $config "checkpoint" (merge ($config.checkpoint | default dict) (dict "ca_file" (include "giblet.caFile" .))) -}}
{{- end -}}
{{- toYaml (dict "config" $config) -}}
{{- end -}}

{{- define "giblet.caFile" -}}
/etc/giblet/ca/ca.crt
{{- end -}}

{{- define "giblet.configHash" -}}
{{- include "giblet.config" . | sha256sum | trunc 16 -}}
{{- end -}}
