{{/*
What the schema cannot say, because it relates keys or needs arithmetic: every fault at once, each with its reason and
remedy. `giblet config check` says the same (giblet/config/values.py), without Helm.
*/}}

{{- define "giblet.validate" -}}
{{- $parts := list (include "giblet.imageFaults" .) (include "giblet.workerFaults" .) (include "giblet.resourceFaults" .) (include "giblet.storageFaults" .) (include "giblet.dataFaults" .) (include "giblet.nameFaults" .) -}}
{{- $faults := without (splitList "\n" ($parts | join "\n")) "" -}}
{{- if $faults -}}
{{- fail (printf "\n\nThese values cannot work:\n  - %s\n\nconfigs/README.md describes every key; `giblet config check FILE` checks a file without a cluster.\n" (join "\n  - " $faults)) -}}
{{- end -}}
{{- end -}}

{{- define "giblet.imageFaults" -}}
{{- if not .Values.image.repository }}
image.repository is empty, and no image is published: build and push yours (docker/build --push REGISTRY/giblet:{{ .Chart.AppVersion }}), then set image.repository=REGISTRY/giblet
{{- end }}
{{- end -}}

{{- define "giblet.workerFaults" -}}
{{- with .Values.workers -}}
{{- if not (and (le (int .min) (int .replicas)) (le (int .replicas) (int .max))) }}
workers.min {{ .min }} <= workers.replicas {{ .replicas }} <= workers.max {{ .max }} does not hold; put them in order
{{- end }}
{{- if and (gt (int .gpusPerWorker) 0) (gt (int .processesPerWorker) (int .gpusPerWorker)) }}
workers.processesPerWorker {{ .processesPerWorker }} is above workers.gpusPerWorker {{ .gpusPerWorker }}: each process needs a GPU of its own; lower the one or raise the other
{{- end }}
{{- if le (.backoffLimit | default 1000 | int) (int .maxRestarts) }}
workers.backoffLimit {{ .backoffLimit | default 1000 }} is not above workers.maxRestarts {{ .maxRestarts }}: the operator would end the job before its own budget does; raise backoffLimit
{{- end }}
{{- if not (and (lt (int .saveSeconds) (int .shutdownTimeoutSeconds)) (le (add .shutdownTimeoutSeconds 20) (int64 .terminationGracePeriodSeconds))) }}
workers.saveSeconds {{ .saveSeconds }} < workers.shutdownTimeoutSeconds {{ .shutdownTimeoutSeconds }}, and 20 more <= workers.terminationGracePeriodSeconds {{ .terminationGracePeriodSeconds }}, does not hold: a worker that is told to stop would be killed in the middle of its last save; raise the later ones
{{- end }}
{{- end }}
{{- end -}}

{{- define "giblet.resourceFaults" -}}
{{- $workers := .Values.workers -}}
{{- $resources := include "giblet.yaml" .Values.resources | fromYaml -}}
{{- $memory := dig "limits" "memory" "" $resources | toString -}}
{{- if and $memory (ge (include "giblet.bytes" $workers.sharedMemory | float64) (include "giblet.bytes" $memory | float64)) }}
workers.sharedMemory {{ $workers.sharedMemory }} is not below resources.limits.memory {{ $memory }}, in which it counts; raise the limit or lower sharedMemory
{{- end }}
{{- range $kind := list "limits" "requests" }}
{{- $gpus := dig $kind $workers.gpuResource "" $resources | toString }}
{{- if and $gpus (ne $gpus (toString (int $workers.gpusPerWorker))) }}
resources.{{ $kind }}.{{ $workers.gpuResource }} is {{ $gpus }} and workers.gpusPerWorker {{ $workers.gpusPerWorker }}; write only gpusPerWorker
{{- end }}
{{- end }}
{{- end -}}

{{- define "giblet.storageFaults" -}}
{{- $s3 := .Values.s3 -}}
{{- $url := dig "checkpoint" "url" "" .Values.config | default "unset" -}}
{{- if not (hasPrefix "s3://" $url) }}
config.checkpoint.url is {{ $url }}: in a cluster it must be s3://bucket/prefix, for a pod's folders end with the pod; set it
{{- end }}
{{- if eq (dig "checkpoint" "endpoint_url" "" .Values.config | toString) "embedded" }}
config.checkpoint.endpoint_url is embedded: that S3 server would end with its pod; name a real one, or unset it for AWS
{{- end }}
{{- if and $s3.existingSecret (or $s3.accessKeyId $s3.secretAccessKey) }}
s3.existingSecret and s3.accessKeyId are both set, and only one can be used; keep existingSecret
{{- end }}
{{- if ne (empty $s3.accessKeyId) (empty $s3.secretAccessKey) }}
s3.accessKeyId and s3.secretAccessKey belong together, and one is missing; set both or none
{{- end }}
{{- if and $s3.ca.secret $s3.ca.configMap }}
s3.ca.secret and s3.ca.configMap are both set, and only one can be mounted; keep one
{{- end }}
{{- end -}}

{{- define "giblet.dataFaults" -}}
{{- $bids := dig "data" "bids" "" .Values.config | default "" -}}
{{- $prepared := dig "data" "prepared" "" .Values.config | default "" -}}
{{- if not (or $bids $prepared) }}
config.data.bids and config.data.prepared are both unset, so there is nothing to train on; name a folder on the volume data.existingClaim, or a prepared dataset s3://…/datasets/HASH
{{- end }}
{{- $mounts := list -}}
{{- if .Values.data.existingClaim -}}
{{- $mounts = append $mounts .Values.data.mountPath -}}
{{- end -}}
{{- range .Values.extraVolumeMounts -}}
{{- $mounts = append $mounts .mountPath -}}
{{- end -}}
{{- range $key, $path := dict "bids" $bids "prepared" $prepared -}}
{{- if and $path (not (hasPrefix "s3://" $path)) -}}
{{- $found := false -}}
{{- range $mounts -}}
{{- if hasPrefix (printf "%s/" (trimSuffix "/" .)) (printf "%s/" $path) -}}
{{- $found = true -}}
{{- end -}}
{{- end -}}
{{- if not $found }}
config.data.{{ $key }} is {{ $path }}, where the pods have no volume; set data.existingClaim and put the path under data.mountPath ({{ $.Values.data.mountPath }})
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "giblet.nameFaults" -}}
{{- $name := include "giblet.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
the objects' name would be {{ $name }}, and the operator wants one that begins with a letter and has only a-z, 0-9 and -; set fullnameOverride
{{- end }}
{{- range list .Values.extraInitContainers .Values.extraVolumes }}
{{- range . }}
{{- if has .name (list "prepare" "pytorch" "config" "tmp" "cache" "data" "shm" "s3-ca") }}
{{ .name }} is a name that the chart uses itself (extraInitContainers, extraVolumes); choose another
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A quantity in bytes, as text: 1.5Gi → 1610612736. */}}
{{- define "giblet.bytes" -}}
{{- $scales := dict "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 -}}
{{- $number := regexFind "^[0-9.]+" . -}}
{{- $unit := trimPrefix $number . -}}
{{- mulf (float64 $number) (get $scales $unit | default 1 | float64) -}}
{{- end -}}
