{{/*
Puts the default in the place of each value that is absent, in .Values itself; every template begins with
it. `helm upgrade --reuse-values` knows no value that the chart before did not have, and null takes one away.
*/}}
{{- define "hugetlb-quota.defaults" -}}
{{- include "hugetlb-quota.fillIn" (list .Values (.Files.Get "files/defaults.yaml" | fromYaml)) }}
{{- end }}

{{/* (list values defaults). Not sprig's merge, which takes false and 0 for absent. */}}
{{- define "hugetlb-quota.fillIn" -}}
{{- $values := first . }}
{{/* These are one value each: what is not in one of them was left out on purpose. */}}
{{- $whole := list "affinity" "labels" "namespaceSelector" "nodeSelector" "podAnnotations" "podLabels" "resources" "serviceAccountAnnotations" "updateStrategy" }}
{{- range $name, $default := last . }}
{{- if kindIs "invalid" (index $values $name) }}
{{- $_ := set $values $name $default }}
{{- else if and (kindIs "map" $default) (not (has $name $whole)) }}
{{- include "hugetlb-quota.fillIn" (list (get $values $name) $default) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "hugetlb-quota.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 43 | trimSuffix "-" }}
{{- end }}

{{/* 43 characters at most: a suffix such as "-admission-tls" follows, and 63 is the limit. */}}
{{- define "hugetlb-quota.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 43 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 43 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 43 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "hugetlb-quota.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ include "hugetlb-quota.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* The pods of one program: (list . "admission") */}}
{{- define "hugetlb-quota.selector" -}}
app.kubernetes.io/name: {{ include "hugetlb-quota.name" (first .) }}
app.kubernetes.io/instance: {{ (first .).Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{- define "hugetlb-quota.image" -}}
{{- $why := printf "image.repository is not set, and there is no public image. Build one (make image IMAGE=registry.example.com/hugetlb-quota:%s), push it to a registry that your nodes pull from, and name it: --set image.repository=registry.example.com/hugetlb-quota" .Chart.AppVersion }}
{{- $repository := required $why .Values.image.repository }}
{{- with .Values.global.imageRegistry }}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) $repository }}
{{- end }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" $repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{/* Who makes the webhooks' certificates: the controller, or "" where the values name another. */}}
{{- define "hugetlb-quota.ownCertificates" -}}
{{- if and .Values.admission.tls.existingSecret .Values.admission.tls.certManager.enabled }}
{{- fail "admission.tls.existingSecret and admission.tls.certManager.enabled exclude each other" }}
{{- end }}
{{- if not (or .Values.admission.tls.existingSecret .Values.admission.tls.certManager.enabled) }}true{{ end }}
{{- end }}

{{/* The Secret whose certificate admission mounts; "" where it reads the controller's own. */}}
{{- define "hugetlb-quota.tlsSecret" -}}
{{- if .Values.admission.tls.certManager.enabled }}
{{- printf "%s-admission-cert-manager" (include "hugetlb-quota.fullname" .) }}
{{- else }}
{{- .Values.admission.tls.existingSecret }}
{{- end }}
{{- end }}

{{/* What admission serves with: certificate and paths. */}}
{{- define "hugetlb-quota.servingSecret" -}}
{{ include "hugetlb-quota.fullname" . }}-admission-serving
{{- end }}

{{/* The CA's; the controller alone may read it. */}}
{{- define "hugetlb-quota.authoritySecret" -}}
{{ include "hugetlb-quota.fullname" . }}-admission-ca
{{- end }}

{{- define "hugetlb-quota.ownSecrets" -}}
- {{ include "hugetlb-quota.servingSecret" . }}
{{- if include "hugetlb-quota.ownCertificates" . }}
- {{ include "hugetlb-quota.authoritySecret" . }}
{{- end }}
{{- end }}

{{/* Where the API server asks: (list . service caBundle webhook-as-it-is) */}}
{{- define "hugetlb-quota.clientConfig" -}}
{{- $root := first . }}
{{- $live := (index . 3 | default dict).clientConfig | default dict }}
{{- $ca := index . 2 | default $live.caBundle -}}
service:
  name: {{ index . 1 }}
  namespace: {{ $root.Release.Namespace }}
  port: 443
  {{- with ($live.service | default dict).path }}
  path: {{ . }}
  {{- end }}
{{- with $ca }}
caBundle: {{ . }}
{{- end }}
{{- end }}

{{/* The namespaces whose pods are asked about: all that are selected and not spared. */}}
{{- define "hugetlb-quota.podNamespaces" -}}
{{- $selector := deepCopy .Values.admission.namespaceSelector }}
{{- $spared := .Values.admission.sparedNamespaces }}
{{- if .Values.admission.spareOwnNamespace }}
{{- $spared = append $spared .Release.Namespace | uniq }}
{{- end }}
{{- if $spared }}
{{- $not := dict "key" "kubernetes.io/metadata.name" "operator" "NotIn" "values" $spared }}
{{- $_ := set $selector "matchExpressions" (append ($selector.matchExpressions | default list) $not) }}
{{- end }}
{{- toYaml $selector }}
{{- end }}

{{/*
The CRDs that are there and not of this release: of one that was uninstalled, or applied by hand. helm would
refuse the whole release for them; they stay as they are, and the notes say how to take them over.
*/}}
{{- define "hugetlb-quota.othersCrds" -}}
{{- range $path, $crd := .Files.Glob "files/crds/*.yaml" }}
{{- $name := (fromYaml (toString $crd)).metadata.name }}
{{- with lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" $name }}
{{- $notes := .metadata.annotations | default dict }}
{{- $is := printf "%s/%s" (get $notes "meta.helm.sh/release-namespace") (get $notes "meta.helm.sh/release-name") }}
{{- $managed := get (.metadata.labels | default dict) "app.kubernetes.io/managed-by" }}
{{- if or (ne $is (printf "%s/%s" $.Release.Namespace $.Release.Name)) (ne $managed "Helm") }}
- {{ $name }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* What admission and controller need of their node: nothing. */}}
{{- define "hugetlb-quota.podSecurity" -}}
runAsNonRoot: true
{{- if .Values.fixedUser }}
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "hugetlb-quota.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What the agent keeps after drop: [ALL]. */}}
{{- define "hugetlb-quota.agentCapabilities" -}}
# The reader loads a BPF program that reads the kernel's memory.
- BPF
- PERFMON
# Before it does, it becomes an ordinary user and gives up all but those two.
- SETUID
- SETGID
- SETPCAP
# To end the reader, another user's process then, when it is late. In its own PID namespace the agent
# reaches no other.
- KILL
{{- if .Values.agent.reclaim }}
# To lease a file of another user: the proof that nobody holds it.
- LEASE
# To empty it and to remove it, also from a directory with the sticky bit.
- DAC_OVERRIDE
- FOWNER
{{- end }}
{{- end }}

{{/* How replicas spread over nodes and zones: (list . "admission") */}}
{{- define "hugetlb-quota.spread" -}}
{{- $own := dict "matchLabels" (include "hugetlb-quota.selector" . | fromYaml) }}
{{- $constraints := list }}
{{- range (index (first .).Values (last .)).topologySpreadConstraints }}
{{- $constraint := deepCopy . }}
{{- if not (hasKey $constraint "labelSelector") }}
{{- $_ := set $constraint "labelSelector" $own }}
{{- end }}
{{- $constraints = append $constraints $constraint }}
{{- end }}
{{- with $constraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What every program logs, and how. */}}
{{- define "hugetlb-quota.log" -}}
- --log-level={{ .Values.log.level }}
- --log-format={{ .Values.log.format }}
{{- end }}

{{/* Where a program's pods run: (.Values.admission) */}}
{{- define "hugetlb-quota.placement" -}}
priorityClassName: {{ .priorityClassName | quote }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* How long a program may take to start, on a slow node with all others starting beside it. */}}
{{- define "hugetlb-quota.startup" -}}
periodSeconds: 2
timeoutSeconds: 5
failureThreshold: {{ div (add1 (int .Values.startupSeconds)) 2 }}
{{- end }}

{{/*
CEL: whether a pod names huge pages in all that counts towards its effective request, and in nothing
else; a limit alone sets the request too. Ephemeral containers cannot ask for huge pages.
*/}}
{{- define "hugetlb-quota.namesHugepages" -}}
(object.spec.containers + object.spec.?initContainers.orValue([])).exists(c,
  [c.?resources.?requests, c.?resources.?limits].exists(list,
    list.orValue({}).exists(name, name.startsWith('hugepages-'))))
|| [object.spec.?resources.?requests, object.spec.?resources.?limits,
  object.spec.?overhead].exists(list,
    list.orValue({}).exists(name, name.startsWith('hugepages-')))
{{- end }}
