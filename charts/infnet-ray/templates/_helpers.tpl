{{/* Names, labels and images. */}}
{{- define "infnet-ray.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 35 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 35 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 35 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* metadata of an object; takes {root, name, labels?, annotations?}. */}}
{{- define "infnet-ray.metadata" -}}
{{- $root := .root -}}
name: {{ .name }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- $labels := dict
    "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
    "app.kubernetes.io/name" $root.Chart.Name
    "app.kubernetes.io/instance" $root.Release.Name
    "app.kubernetes.io/managed-by" $root.Release.Service
    "app.kubernetes.io/part-of" "infnet-ray"
    "app.kubernetes.io/version" $root.Chart.AppVersion }}
  {{- toYaml (merge $labels (default dict .labels) $root.Values.commonLabels) | nindent 2 }}
{{- with merge (deepCopy (default dict .annotations)) $root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Reference of the image; takes {root, own?}, own being the image of one application. */}}
{{- define "infnet-ray.image" -}}
{{- $image := .root.Values.image }}
{{- $own := default dict .own }}
{{- $registry := default $image.registry .root.Values.global.imageRegistry }}
{{- $repository := $image.repository }}
{{- if $registry }}{{ $repository = printf "%s/%s" (trimSuffix "/" $registry) $repository }}{{ end }}
{{- if $own.digest }}{{ printf "%s@%s" $repository $own.digest }}
{{- else if $own.tag }}{{ printf "%s:%s" $repository $own.tag }}
{{- else if $image.digest }}{{ printf "%s@%s" $repository $image.digest }}
{{- else }}{{ printf "%s:%s" $repository (default .root.Chart.AppVersion $image.tag) }}
{{- end }}
{{- end }}

{{- define "infnet-ray.pullSecrets" -}}
{{- with concat .Values.global.imagePullSecrets .Values.imagePullSecrets | uniq -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "infnet-ray.serviceAccount" -}}
{{- if .Values.serviceAccount.name }}{{ .Values.serviceAccount.name }}
{{- else if .Values.serviceAccount.create }}{{ include "infnet-ray.fullname" . }}
{{- else }}default
{{- end }}
{{- end }}

{{- define "infnet-ray.launcherAccount" -}}
{{- default (printf "%s-launcher" (include "infnet-ray.fullname" .)) .Values.rbac.launcher.serviceAccount.name }}
{{- end }}

{{/* Applications with their defaults, those that are served, as JSON: {name: application}. */}}
{{- define "infnet-ray.applications" -}}
{{- $found := dict }}
{{- range $name, $given := .Values.applications }}
{{- $app := mergeOverwrite (deepCopy $.Values.applicationDefaults) (deepCopy (default dict $given)) }}
{{- if $app.enabled }}
{{- $_ := set $app "name" $name }}
{{- if not $app.routePrefix }}{{ $_ := set $app "routePrefix" (printf "/%s" $name) }}{{ end }}
{{- $infnet := eq $app.program "infnet" }}
{{- $_ := set $app "importPath" (ternary "infnet.serve.application:build" "layer_select.serve.application:build" $infnet) }}
{{- $_ := set $app "deployment" (ternary "Scorer" "RecommenderApp" $infnet) }}
{{- $_ := set $app "path" (ternary "/score" "/recommend" $infnet) }}
{{- $_ := set $found $name $app }}
{{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/* RayServices as JSON: {name: [applications]}. */}}
{{- define "infnet-ray.services" -}}
{{- $full := include "infnet-ray.fullname" . }}
{{- $found := dict }}
{{- $apps := include "infnet-ray.applications" . | fromJson }}
{{- if eq .Values.topology "shared" }}
{{- range $app := $apps }}
{{- $_ := set $found $full (append (default list (index $found $full)) $app) }}
{{- end }}
{{- else }}
{{- range $name, $app := $apps }}
{{- $_ := set $found (printf "%s-%s" $full $name) (list $app) }}
{{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/* Groups of workers with their defaults as JSON: {name: group}. */}}
{{- define "infnet-ray.workers" -}}
{{- $found := dict }}
{{- range $name, $given := .Values.workers }}
{{- $_ := set $found $name (mergeOverwrite (deepCopy $.Values.workerDefaults) (deepCopy (default dict $given))) }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{- define "infnet-ray.service.url" -}}
http://{{ .name }}-serve-svc.{{ .root.Release.Namespace }}.svc:{{ .root.Values.serve.port }}
{{- end }}
