{{- define "whetstone.labels" -}}
app.kubernetes.io/part-of: whetstone
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* `whet` finds the operator's pods by this label, and its port by the name intake. */ -}}
{{- define "whetstone.operatorLabels" -}}
app.kubernetes.io/name: whetstone-operator
{{- end }}

{{- define "whetstone.agentLabels" -}}
app.kubernetes.io/name: whetstone-agent
{{- end }}

{{- define "whetstone.agentNamespace" -}}
{{ .Values.agent.namespace | default .Release.Namespace }}
{{- end }}

{{- define "whetstone.pkiSecret" -}}
{{ .Values.pki.existingSecret | default "whetstone-pki" }}
{{- end }}

{{- define "whetstone.operatorPriority" -}}
{{ .Values.priorityClasses.operator | default (ternary "whetstone-operator" "" .Values.priorityClasses.create) }}
{{- end }}

{{- define "whetstone.agentPriority" -}}
{{ .Values.priorityClasses.agent | default (ternary "whetstone-agent" "" .Values.priorityClasses.create) }}
{{- end }}

{{- /* A P-256 key as the operator reads it: PKCS#8, where genPrivateKey gives SEC 1. Both are DER, and for this curve PKCS#8 is
       a header of always the same bytes (RFC 5958: version, id-ecPublicKey, prime256v1, length) before the SEC 1 key. */ -}}
{{- define "whetstone.ecKey" -}}
{{- $sec1 := . | replace "-----BEGIN EC PRIVATE KEY-----" "" | replace "-----END EC PRIVATE KEY-----" "" | replace "\n" "" | b64dec -}}
{{- if ne (len $sec1) 121 }}{{ fail "genPrivateKey gave an EC key of an unknown form: make the CA with `whetstone-operator pki init` and set pki.existingSecret" }}{{ end -}}
-----BEGIN PRIVATE KEY-----
{{ range $line := (printf "%s%s" (b64dec "MIGTAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBHk=") $sec1 | b64enc | splitList "" | chunk 64) }}{{ join "" $line }}
{{ end -}}
-----END PRIVATE KEY-----
{{- end }}
