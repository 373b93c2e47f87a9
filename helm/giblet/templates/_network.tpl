{{/* Parts of NetworkPolicies. Ports are those of pods: a policy sees traffic after a Service has been resolved. */}}

{{/* DNS, S3, HTTPS: what every pod of ours may reach. */}}
{{- define "giblet.commonEgress" -}}
{{- $policy := .Values.networkPolicy -}}
- ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
- ports:
    {{- range $port := splitList "," (include "giblet.s3Ports" .) }}
    - {protocol: TCP, port: {{ $port }}}
    {{- end }}
  {{- with $policy.s3To }}
  to:
    {{- include "giblet.yaml" . | nindent 4 }}
  {{- end }}
{{- if $policy.https }}
- ports:
    - {protocol: TCP, port: 443}
{{- end }}
{{- with include "giblet.entries" $policy.extraEgress }}
{{ . }}
{{- end }}
{{- end -}}

{{/* Given, or the endpoint's, or its scheme's: 443. Comma-separated. */}}
{{- define "giblet.s3Ports" -}}
{{- if .Values.networkPolicy.s3Ports -}}
{{- range $index, $port := .Values.networkPolicy.s3Ports -}}{{ if $index }},{{ end }}{{ int $port }}{{- end -}}
{{- else -}}
{{- include "giblet.urlPort" (dig "checkpoint" "endpoint_url" "" .Values.config | default "https://") -}}
{{- end -}}
{{- end -}}

{{/* Prometheus may scrape. */}}
{{- define "giblet.metricsIngress" -}}
{{- with include "giblet.metricsPort" . -}}
- ports:
    - {protocol: TCP, port: {{ . }}}
  {{- with $.Values.networkPolicy.metricsFrom }}
  from:
    {{- include "giblet.yaml" . | nindent 4 }}
  {{- end }}
{{- end }}
{{- with include "giblet.entries" .Values.networkPolicy.extraIngress }}
{{ . }}
{{- end }}
{{- end -}}

{{/* A peer: the pods of one component of this release. Called with (dict "root" $ "component" "worker"). */}}
{{- define "giblet.peer" -}}
- podSelector:
    matchLabels:
      {{- include "giblet.selectorLabels" . | nindent 6 }}
{{- end -}}

{{/* The port of an address: written in it, or its scheme's. */}}
{{- define "giblet.urlPort" -}}
{{- $url := urlParse . -}}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (eq $url.scheme "http" | ternary "80" "443") -}}
{{- end -}}
