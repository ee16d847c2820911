{{/*
Sets each absent value in .Values to its default. Every template begins with this. Values can be absent:
`helm upgrade --reuse-values` lacks values that the previous chart did not have, and null removes a value.
*/}}
{{- define "hugetlb-quota.defaults" -}}
{{- include "hugetlb-quota.fillIn" (list .Values (.Files.Get "files/defaults.yaml" | fromYaml)) }}
{{- end }}

{{/* Arguments: (list values defaults). sprig's merge is no use: it treats false and 0 as absent. */}}
{{- define "hugetlb-quota.fillIn" -}}
{{- $values := first . }}
{{/* Each of these is one value as a whole: do not fill in its keys. */}}
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

{{/* At most 43 characters: names have at most 63, and a suffix such as "-admission-tls" follows. */}}
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

{{/* The labels that select the pods of one program. Arguments: (list . "admission") */}}
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

{{/* "true" if the controller makes the certificates of the webhooks, otherwise "". */}}
{{- define "hugetlb-quota.ownCertificates" -}}
{{- if and .Values.admission.tls.existingSecret .Values.admission.tls.certManager.enabled }}
{{- fail "admission.tls.existingSecret and admission.tls.certManager.enabled exclude each other" }}
{{- end }}
{{- if not (or .Values.admission.tls.existingSecret .Values.admission.tls.certManager.enabled) }}true{{ end }}
{{- end }}

{{/* The Secret that admission mounts; "" if admission reads the controller's Secret from the API. */}}
{{- define "hugetlb-quota.tlsSecret" -}}
{{- if .Values.admission.tls.certManager.enabled }}
{{- printf "%s-admission-cert-manager" (include "hugetlb-quota.fullname" .) }}
{{- else }}
{{- .Values.admission.tls.existingSecret }}
{{- end }}
{{- end }}

{{/* The Secret with admission's certificate and paths. */}}
{{- define "hugetlb-quota.servingSecret" -}}
{{ include "hugetlb-quota.fullname" . }}-admission-serving
{{- end }}

{{/* The Secret of the CA; only the controller may read it. */}}
{{- define "hugetlb-quota.authoritySecret" -}}
{{ include "hugetlb-quota.fullname" . }}-admission-ca
{{- end }}

{{- define "hugetlb-quota.ownSecrets" -}}
- {{ include "hugetlb-quota.servingSecret" . }}
{{- if include "hugetlb-quota.ownCertificates" . }}
- {{ include "hugetlb-quota.authoritySecret" . }}
{{- end }}
{{- end }}

{{/* The clientConfig of a webhook. Arguments: (list . service caBundle existing-webhook) */}}
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

{{/* Selects the namespaces in which admission decides about pods: selected and not spared. */}}
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
The existing CRDs that do not belong to this release: left by an uninstalled release, or applied by hand.
helm would refuse the whole release because of them. So the chart leaves them as they are, and the notes say
how to take them over.
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

{{/* The security context of admission and controller, which need no rights on their node. */}}
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

{{/* The capabilities of the agent. */}}
{{- define "hugetlb-quota.agentCapabilities" -}}
# The reader loads a BPF program that reads the kernel's memory.
- BPF
- PERFMON
# Before that, the reader becomes an ordinary user and keeps only these two capabilities.
- SETUID
- SETGID
- SETPCAP
# To kill the reader if it takes too long: the reader then belongs to another user. The agent has its
# own PID namespace and can't reach other processes.
- KILL
{{- if .Values.agent.reclaim }}
# To lease a file of another user: a lease proves that no process has the file open.
- LEASE
# To truncate and remove such a file, also in a directory with the sticky bit.
- DAC_OVERRIDE
- FOWNER
{{- end }}
{{- end }}

{{/* The spread of replicas over nodes and zones. Arguments: (list . "admission") */}}
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

{{/* The log options of every program. */}}
{{- define "hugetlb-quota.log" -}}
- --log-level={{ .Values.log.level }}
- --log-format={{ .Values.log.format }}
{{- end }}

{{/* The placement of a program's pods. Argument: .Values.admission */}}
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

{{/* A liveness probe: a busy node answers late, and a restart would make the node busier. */}}
{{- define "hugetlb-quota.liveness" -}}
periodSeconds: 20
timeoutSeconds: 10
failureThreshold: 6
{{- end }}

{{/* A startup probe: a program starts slowly on a slow node where all others start too. */}}
{{- define "hugetlb-quota.startup" -}}
periodSeconds: 2
timeoutSeconds: 5
failureThreshold: {{ div (add1 (int .Values.startupSeconds)) 2 }}
{{- end }}

{{/*
CEL: whether a pod names huge pages in a field that counts for its effective request. A limit without a
request is also the request. Ephemeral containers can't ask for huge pages.
*/}}
{{- define "hugetlb-quota.namesHugepages" -}}
(object.spec.containers + object.spec.?initContainers.orValue([])).exists(c,
  [c.?resources.?requests, c.?resources.?limits].exists(list,
    list.orValue({}).exists(name, name.startsWith('hugepages-'))))
|| [object.spec.?resources.?requests, object.spec.?resources.?limits,
  object.spec.?overhead].exists(list,
    list.orValue({}).exists(name, name.startsWith('hugepages-')))
{{- end }}
