{{/*
Values as Helm's users write them: a null takes a key away. Helm does that itself for keys that values.yaml has; inside maps
that are Kubernetes' own (resources, affinity, security contexts, labels) it stays, and the API server would refuse it.
*/}}

{{/* YAML of a value of any kind, without its nulls; `{}` for nothing. Templates write values with this alone. */}}
{{- define "giblet.yaml" -}}
{{- $copy := deepCopy (dict "it" .) -}}
{{- include "giblet.dropNulls" $copy -}}
{{- toYaml ($copy.it | default dict) -}}
{{- end -}}

{{/* The same, to be written among other entries: empty for nothing. */}}
{{- define "giblet.entries" -}}
{{- $yaml := include "giblet.yaml" . -}}
{{- if ne $yaml "{}" -}}
{{- $yaml -}}
{{- end -}}
{{- end -}}

{{/* In place. */}}
{{- define "giblet.dropNulls" -}}
{{- if kindIs "map" . -}}
{{- range $key, $value := . -}}
{{- if kindIs "invalid" $value -}}
{{- $_ := unset $ $key -}}
{{- else -}}
{{- include "giblet.dropNulls" $value -}}
{{- end -}}
{{- end -}}
{{- else if kindIs "slice" . -}}
{{- range . -}}
{{- include "giblet.dropNulls" . -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Elsewhere the default is gone, and nothing works without. files/never-null.txt is generated from the schema. */}}
{{- define "giblet.refuseNulls" -}}
{{- $faults := list -}}
{{- range $key := .Files.Lines "files/never-null.txt" -}}
{{- $value := $.Values -}}
{{- $there := true -}}
{{- range $part := splitList "." $key -}}
{{- if kindIs "map" $value -}}
{{- $value = index $value $part -}}
{{- else -}}
{{- $there = false -}}
{{- end -}}
{{- end -}}
{{- if and $key $there (kindIs "invalid" $value) -}}
{{- $faults = append $faults (printf "%s is null, which takes its default away; leave the key out, or give it a value" $key) -}}
{{- end -}}
{{- end -}}
{{- if $faults -}}
{{- fail (printf "\n\nThese values cannot work:\n  - %s\n" (join "\n  - " $faults)) -}}
{{- end -}}
{{- end -}}
