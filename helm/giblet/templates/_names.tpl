{{/* Names, labels and references. Every name derives from giblet.fullname, which leaves room for `-worker-127`. */}}

{{- define "giblet.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "giblet.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "giblet.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What never changes during a release's life: selectors use it. Called with (dict "root" $ "component" "worker"). */}}
{{- define "giblet.selectorLabels" -}}
app.kubernetes.io/name: {{ include "giblet.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of an object, or of a pod. */}}
{{- define "giblet.labels" -}}
{{ include "giblet.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
giblet.dev/run: {{ include "giblet.runName" .root | quote }}
{{- with include "giblet.entries" .root.Values.commonLabels }}
{{ . }}
{{- end }}
{{- end -}}

{{- define "giblet.objectLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "giblet.labels" . }}
{{- end -}}

{{- define "giblet.podLabels" -}}
{{ include "giblet.labels" . }}
{{- with include "giblet.entries" .root.Values.podLabels }}
{{ . }}
{{- end }}
{{- end -}}

{{- define "giblet.podAnnotations" -}}
giblet.dev/config-hash: {{ include "giblet.configHash" .root }}
kubectl.kubernetes.io/default-container: {{ .container }}
{{- with include "giblet.entries" .root.Values.podAnnotations }}
{{ . }}
{{- end }}
{{- end -}}

{{- define "giblet.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default .Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "giblet.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "giblet.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "giblet.verifyServiceAccountName" -}}
{{- if .Values.verify.serviceAccount.create -}}
{{- default (printf "%s-verify" (include "giblet.fullname" .)) .Values.verify.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.verify.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Processes of a worker, as text: the operator's nprocPerNode is a string. */}}
{{- define "giblet.processes" -}}
{{- .Values.workers.processesPerWorker | default (max (int .Values.workers.gpusPerWorker) 1) -}}
{{- end -}}

{{/* "true" where the rendezvous store has a pod of its own. */}}
{{- define "giblet.rendezvousPod" -}}
{{- if or (eq .Values.rendezvous.mode "pod") (and (eq .Values.rendezvous.mode "auto") (gt (int .Values.workers.max) 1)) -}}
true
{{- end -}}
{{- end -}}

{{/*
"true" where the API versions come from a cluster. Offline, Helm assumes a set without kinds; a cluster's has them.
`helm template --api-versions v1/ConfigMap` plays a cluster.
*/}}
{{- define "giblet.clusterSeen" -}}
{{- if .Capabilities.APIVersions.Has "v1/ConfigMap" -}}
true
{{- end -}}
{{- end -}}

{{/* "true" where monitoring objects of this kind can be created. Called with (dict "root" $ "kind" "PodMonitor"). */}}
{{- define "giblet.hasMonitoringApi" -}}
{{- $versions := .root.Capabilities.APIVersions -}}
{{- $seen := $versions.Has (printf "monitoring.coreos.com/v1/%s" .kind) -}}
{{- $said := and (not (include "giblet.clusterSeen" .root)) ($versions.Has "monitoring.coreos.com/v1") -}}
{{- if or .root.Values.monitoring.force $seen $said -}}
true
{{- end -}}
{{- end -}}
