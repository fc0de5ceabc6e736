{{- define "argosy.labels" -}}
app.kubernetes.io/name: argosy
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "argosy.image" -}}
{{ .repository }}:{{ .tag }}
{{- end }}

{{/* A pod without rights. Without service links: a Service named argosy-gateway would set ARGOSY_GATEWAY_PORT. */}}
{{- define "argosy.pod" -}}
enableServiceLinks: false
automountServiceAccountToken: false
securityContext: { runAsNonRoot: true, runAsUser: 10001, fsGroup: 10001, seccompProfile: { type: RuntimeDefault } }
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- end }}

{{- define "argosy.container" -}}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext: { allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: { drop: [ALL] } }
{{- end }}

{{- define "argosy.environment" -}}
- { name: ARGOSY_BROKER_URL, valueFrom: { secretKeyRef: { name: {{ .Values.secret }}, key: broker-url } } }
- { name: ARGOSY_STORE_URL, valueFrom: { secretKeyRef: { name: {{ .Values.secret }}, key: store-url } } }
{{- if .Values.fleet }}
- { name: ARGOSY_FLEET, value: /etc/argosy/fleet.toml }
{{- end }}
{{- end }}

{{- define "argosy.mounts" -}}
- { name: tmp, mountPath: /tmp }
{{- if .Values.fleet }}
- { name: fleet, mountPath: /etc/argosy, readOnly: true }
{{- end }}
{{- end }}

{{- define "argosy.volumes" -}}
- { name: tmp, emptyDir: {} }
{{- if .Values.fleet }}
- { name: fleet, configMap: { name: {{ .Release.Name }}-fleet } }
{{- end }}
{{- end }}

{{/* A change of fleet.toml restarts the pods that read it. */}}
{{- define "argosy.annotations" -}}
checksum/fleet: {{ sha256sum .Values.fleet }}
{{- end }}
