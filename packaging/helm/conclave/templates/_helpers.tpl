{{- define "conclave.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "conclave.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "conclave.labels" -}}
{{ include "conclave.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "conclave.serviceAccount" -}}
{{- default (include "conclave.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- /* The domain of the pods: POD.DOMAIN is the address of one. */ -}}
{{- define "conclave.domain" -}}
{{- printf "%s-nodes.%s.svc.%s" (include "conclave.fullname" .) .Release.Namespace .Values.clusterDomain -}}
{{- end -}}

{{- /* How many pods, the first ones, found the cluster. */ -}}
{{- define "conclave.founders" -}}
{{- $founders := int (default .Values.replicaCount .Values.founders) -}}
{{- if not (has $founders (list 1 3 5 7)) -}}
{{- fail "replicaCount must be 1, 3, 5 or 7, unless founders says how many nodes founded the cluster" -}}
{{- end -}}
{{- if gt $founders (int .Values.replicaCount) -}}
{{- fail "founders must not be more than replicaCount" -}}
{{- end -}}
{{- $founders -}}
{{- end -}}

{{- define "conclave.peers" -}}
{{- $peers := list -}}
{{- range $i := until (int (include "conclave.founders" .)) -}}
{{- $pod := printf "%s-%d" (include "conclave.fullname" $) $i -}}
{{- $peers = append $peers (printf "%s=%s.%s:7602" $pod $pod (include "conclave.domain" $)) -}}
{{- end -}}
{{- join "," $peers -}}
{{- end -}}
