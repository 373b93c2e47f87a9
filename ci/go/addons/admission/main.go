// Command admission says what a cluster would say to manifests, without a cluster: it runs the training operator's own
// webhook on each PyTorchJob, and Kubernetes' own Pod Security check (level restricted, newest version) on each Pod.
//
// Standard input is a JSON array of objects, standard output a JSON array with the list of faults of each.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"

	trainingoperator "github.com/kubeflow/training-operator/pkg/apis/kubeflow.org/v1"
	"github.com/kubeflow/training-operator/pkg/webhooks/pytorch"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

func main() {
	var objects []json.RawMessage
	if err := json.NewDecoder(os.Stdin).Decode(&objects); err != nil {
		log.Fatalf("standard input is no JSON array of objects: %v", err)
	}
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		log.Fatal(err)
	}
	answers := make([][]string, len(objects))
	for i, object := range objects {
		if answers[i], err = judge(object, evaluator); err != nil {
			log.Fatalf("object %d: %v", i, err)
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		log.Fatal(err)
	}
}

func judge(object json.RawMessage, evaluator policy.Evaluator) ([]string, error) {
	faults := []string{}
	var kind metav1.TypeMeta
	if err := json.Unmarshal(object, &kind); err != nil {
		return nil, err
	}
	switch kind.Kind {
	case "PyTorchJob":
		var job trainingoperator.PyTorchJob
		if err := json.Unmarshal(object, &job); err != nil {
			return append(faults, err.Error()), nil
		}
		warnings, err := (&pytorch.Webhook{}).ValidateCreate(context.Background(), &job)
		faults = append(faults, warnings...)
		if err != nil {
			faults = append(faults, err.Error())
		}
	case "Pod":
		var pod corev1.Pod
		if err := json.Unmarshal(object, &pod); err != nil {
			return append(faults, err.Error()), nil
		}
		level := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
		for _, result := range evaluator.EvaluatePod(level, &pod.ObjectMeta, &pod.Spec) {
			if !result.Allowed {
				faults = append(faults, fmt.Sprintf("%s: %s", result.ForbiddenReason, result.ForbiddenDetail))
			}
		}
	default:
		return nil, fmt.Errorf("kind %q is neither PyTorchJob nor Pod", kind.Kind)
	}
	return faults, nil
}
