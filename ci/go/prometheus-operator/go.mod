module giblet/ci/go/prometheus-operator

go 1.26.0

// Only its CRDs are read: nothing is built from it.
require github.com/prometheus-operator/prometheus-operator v0.85.0
