// CoreDNS with the plugins that ci/cluster's Corefile names, and no others.
//
// The stock program also links the clients of three clouds and of two tracers, which take most of its build time and
// are of no use in a cluster without a way out.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/ready"
)

func main() {
	// In the order in which a query passes them: that of CoreDNS's own plugin.cfg.
	dnsserver.Directives = []string{"health", "ready", "prometheus", "errors", "cache", "kubernetes"}
	coremain.Run()
}
