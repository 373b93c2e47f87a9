{{/* What depends on the cluster at hand, rather than on the values. Offline, none of it applies. */}}

{{/* The API that everything here is about. */}}
{{- define "giblet.requireOperator" -}}
{{- if and (include "giblet.clusterSeen" .) (not (.Capabilities.APIVersions.Has "kubeflow.org/v1/PyTorchJob")) -}}
{{- fail "\n\nThis cluster has no PyTorchJobs: the Kubeflow training operator is not installed. Install it with\n\n    kubectl apply --server-side -k k8s/operator\n    kubectl -n kubeflow rollout status deployment/training-operator\n\nand try again. Its definition of a PyTorchJob is too large for a client-side apply, so keep --server-side.\n" -}}
{{- end -}}
{{- end -}}

{{/* What makes way for another template. */}}
{{- define "giblet.stopCommand" -}}
{{- $name := include "giblet.fullname" . -}}
kubectl -n {{ .Release.Namespace }} delete --cascade=foreground --ignore-not-found pytorchjob/{{ $name }} job/{{ $name }}-verify
{{- end -}}

{{/*
A changed template reaches only pods that are created later, and a job that has ended not at all. So a change of anything
but workers.replicas is refused while the job or its verification exists. `helm template` and GitOps tools see no cluster.
upgrade.allow lets the operator take it; a Job's template is immutable, so the verification must make way all the same.
*/}}
{{- define "giblet.refuseSilentUpgrade" -}}
{{- if .Release.IsUpgrade -}}
{{- $name := include "giblet.fullname" . -}}
{{- $hash := include "giblet.templateHash" . -}}
{{- $job := lookup "kubeflow.org/v1" "PyTorchJob" .Release.Namespace $name -}}
{{- $verify := lookup "batch/v1" "Job" .Release.Namespace (printf "%s-verify" $name) -}}
{{- $jobHash := dig "metadata" "annotations" "giblet.dev/template-hash" $hash $job -}}
{{- $verifyHash := dig "spec" "template" "metadata" "annotations" "giblet.dev/template-hash" $hash $verify -}}
{{- if .Values.upgrade.allow -}}
{{- if ne $hash $verifyHash -}}
{{- fail (printf "\n\nupgrade.allow is true, but Job %s-verify exists, and Kubernetes lets nobody change a Job's template. It holds no state;\nthe new one judges the same run:\n\n    kubectl -n %s delete --cascade=foreground job/%s-verify\n\nand repeat the upgrade.\n" $name .Release.Namespace $name) -}}
{{- end -}}
{{- else if or (ne $hash $jobHash) (ne $hash $verifyHash) -}}
{{- $state := "not started" -}}
{{- range dig "status" "conditions" list $job -}}
{{- if eq .status "True" -}}
{{- $state = lower .type -}}
{{- end -}}
{{- end -}}
{{- fail (printf "\n\nPyTorchJob %s exists (%s), and this upgrade changes more than workers.replicas. Pods that run would keep the old\nconfiguration, and a job that has ended would not start again. Stop it first; its workers save before they go:\n\n    %s\n\nand repeat the upgrade: the run goes on from its last checkpoint (a change of model or data needs a new\nconfig.run.name). To change the template under running pods all the same: --set upgrade.allow=true.\n" $name $state (include "giblet.stopCommand" .)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
