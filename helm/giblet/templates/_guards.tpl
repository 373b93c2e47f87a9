{{/* What depends on the cluster at hand, rather than on the values. Offline, none of it applies. */}}

{{/* The API that everything here is about. */}}
{{- define "giblet.requireOperator" -}}
{{- if and (include "giblet.clusterSeen" .) (not (.Capabilities.APIVersions.Has "kubeflow.org/v1/PyTorchJob")) -}}
{{- fail "\n\nThis cluster has no PyTorchJobs: the Kubeflow training operator is not installed. Install it with\n\n    kubectl apply --server-side -k k8s/operator\n    kubectl -n kubeflow rollout status deployment/training-operator\n\nand try again. Its definition of a PyTorchJob is too large for a client-side apply, so keep --server-side.\n" -}}
{{- end -}}
{{- end -}}

{{/*
A changed template reaches only pods that are created later, and a job that has ended not at all. So a change of anything
but workers.replicas is refused while the job or its verification exists. `helm template` and GitOps tools see no cluster.
*/}}
{{- define "giblet.refuseSilentUpgrade" -}}
{{- if and .Release.IsUpgrade (not .Values.upgrade.allow) -}}
{{- $name := include "giblet.fullname" . -}}
{{- $hash := include "giblet.templateHash" . -}}
{{- $job := lookup "kubeflow.org/v1" "PyTorchJob" .Release.Namespace $name -}}
{{- $verify := lookup "batch/v1" "Job" .Release.Namespace (printf "%s-verify" $name) -}}
{{- $jobHash := dig "metadata" "annotations" "giblet.dev/template-hash" $hash $job -}}
{{- $verifyHash := dig "spec" "template" "metadata" "annotations" "giblet.dev/template-hash" $hash $verify -}}
{{- if or (ne $hash $jobHash) (ne $hash $verifyHash) -}}
{{- $state := "not started" -}}
{{- range dig "status" "conditions" list $job -}}
{{- if eq .status "True" -}}
{{- $state = lower .type -}}
{{- end -}}
{{- end -}}
{{- fail (printf "\n\nPyTorchJob %s exists (%s), and this upgrade changes more than workers.replicas. Pods that run would keep the old\nconfiguration, and a job that has ended would not start again. Stop it first; its workers save before they go:\n\n    kubectl -n %s delete --cascade=foreground --ignore-not-found pytorchjob/%s job/%s-verify\n\nand repeat the upgrade: the run goes on from its last checkpoint (a change of model or data needs a new\nconfig.run.name). To change the template under running pods all the same: --set upgrade.allow=true.\n" $name $state .Release.Namespace $name $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
