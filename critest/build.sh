#!/bin/bash
# Builds critest of the pinned cri-tools: build.sh CRIW-CRITEST DIRECTORY OUTPUT
#
# One constant has to differ: the digest of an image that only its makers can have (see
# tests/src/critest/consts.rs). go refuses -overlay for files of its module cache, so a copy
# of the module lies in DIRECTORY, and a go.mod beside it that points there.
set -euo pipefail

usage="usage: build.sh CRIW-CRITEST DIRECTORY OUTPUT"
program=${1:?$usage} dir=${2:?$usage} output=${3:?$usage}
# They are meant where the caller stands.
program=$(realpath -m "$program") dir=$(realpath -m "$dir") output=$(realpath -m "$output")
: "${CRI_TOOLS:?set it to the version of cri-tools, as 1.36.0}"
module=sigs.k8s.io/cri-tools
cd "$(dirname "$0")"
mkdir -p "$dir"

go mod download "$module"
source=$(go list -m -f '{{.Dir}}' "$module")
rm -rf "$dir/cri-tools"
# Files of the module cache are read-only.
cp -r --no-preserve=mode "$source" "$dir/cri-tools"
"$program" consts "$dir/cri-tools/pkg/validate/consts.go"

cp go.mod "$dir/go.mod"
cp go.sum "$dir/go.sum"
go mod edit -replace "$module=$dir/cri-tools" "$dir/go.mod"
CGO_ENABLED=0 go test -c -trimpath -modfile "$dir/go.mod" -o "$output" \
    -ldflags "-s -w -X $module/pkg/version.Version=$CRI_TOOLS" "$module/cmd/critest"
