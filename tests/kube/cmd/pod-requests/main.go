// Command pod-requests answers, for each pod (JSON, one a line on standard
// input), what Kubernetes' own code counts as its effective request: one JSON
// object of resource name to decimal quantity a line. The differential test of
// demand compares with it.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"
)

func main() {
	decoder := json.NewDecoder(bufio.NewReaderSize(os.Stdin, 1<<20))
	out := bufio.NewWriterSize(os.Stdout, 1<<20)
	defer out.Flush()
	encoder := json.NewEncoder(out)
	for decoder.More() {
		var pod v1.Pod
		if err := decoder.Decode(&pod); err != nil {
			fmt.Fprintln(os.Stderr, "pod-requests:", err)
			os.Exit(1)
		}
		requests := map[string]string{}
		for name, quantity := range resource.PodRequests(&pod, resource.PodResourcesOptions{}) {
			requests[string(name)] = quantity.AsDec().String()
		}
		if err := encoder.Encode(requests); err != nil {
			fmt.Fprintln(os.Stderr, "pod-requests:", err)
			os.Exit(1)
		}
	}
}
