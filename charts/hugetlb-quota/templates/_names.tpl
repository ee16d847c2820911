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
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "hugetlb-quota.tlsSecret" -}}
{{- .Values.admission.tls.existingSecret | default (printf "%s-admission-tls" (include "hugetlb-quota.fullname" .)) }}
{{- end }}

{{/* What admission and controller need of their node: nothing. */}}
{{- define "hugetlb-quota.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "hugetlb-quota.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* One replica a node where there are nodes enough: (list . "admission") */}}
{{- define "hugetlb-quota.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "hugetlb-quota.selector" . | nindent 8 }}
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "hugetlb-quota.selector" . | nindent 8 }}
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
