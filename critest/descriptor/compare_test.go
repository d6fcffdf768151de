package descriptor

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// criPackage is the proto package of both descriptors.
const criPackage = "runtime.v1"

// dumpDeadline covers a cold build of the proto crate and all it depends on.
const dumpDeadline = 8 * time.Minute

func TestOurProtoIsUpstreams(t *testing.T) {
	want := upstream(t)
	got := ours(t)
	// Without this a descriptor that holds nothing would compare equal to another one.
	if n := want.Services().Len(); n != 2 {
		t.Fatalf("upstream has %d services, so this is not the CRI", n)
	}
	if found := Compare(want, got); len(found) > 0 {
		t.Errorf("proto/proto/runtime/v1/cri.proto differs from k8s.io/cri-api in %d places:\n  %s",
			len(found), strings.Join(found, "\n  "))
	}
}

// Each row breaks one thing in a copy of upstream's own descriptor; the comparison must name it.
func TestEveryKindOfDifferenceIsFound(t *testing.T) {
	type file = descriptorpb.FileDescriptorProto
	for _, row := range []struct {
		name  string
		spoil func(t *testing.T, f *file)
		want  []string
	}{
		{
			name:  "nothing changed",
			spoil: func(*testing.T, *file) {},
		},
		{
			name: "field number",
			spoil: func(t *testing.T, f *file) {
				field(t, f, "VersionResponse", "runtime_name").Number = proto.Int32(9)
			},
			want: []string{"field runtime.v1.VersionResponse.runtime_name: want number 2, got 9"},
		},
		{
			name: "scalar type",
			spoil: func(t *testing.T, f *file) {
				field(t, f, "KeyValue", "value").Type = descriptorpb.FieldDescriptorProto_TYPE_STRING.Enum()
			},
			want: []string{"field runtime.v1.KeyValue.value: want type bytes, got string"},
		},
		{
			name: "message type",
			spoil: func(t *testing.T, f *file) {
				field(t, f, "CpuUsage", "usage_nano_cores").TypeName = proto.String(".runtime.v1.Int64Value")
			},
			want: []string{"field runtime.v1.CpuUsage.usage_nano_cores: want type message runtime.v1.UInt64Value, got message runtime.v1.Int64Value"},
		},
		{
			name: "value type of a map",
			spoil: func(t *testing.T, f *file) {
				entry := nested(t, message(t, f, "PodSandboxConfig"), "LabelsEntry")
				entry.Field[1].Type = descriptorpb.FieldDescriptorProto_TYPE_BYTES.Enum()
			},
			want: []string{"field runtime.v1.PodSandboxConfig.LabelsEntry.value: want type string, got bytes"},
		},
		{
			name: "map became a list",
			spoil: func(t *testing.T, f *file) {
				nested(t, message(t, f, "PodSandboxConfig"), "LabelsEntry").Options = nil
			},
			want: []string{
				"field runtime.v1.PodSandboxConfig.labels: want map true, got false",
				"message runtime.v1.PodSandboxConfig.LabelsEntry: want map entry true, got false",
			},
		},
		{
			name: "label",
			spoil: func(t *testing.T, f *file) {
				field(t, f, "ExecRequest", "cmd").Label = descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()
			},
			want: []string{"field runtime.v1.ExecRequest.cmd: want label repeated, got optional"},
		},
		{
			name: "packing",
			spoil: func(t *testing.T, f *file) {
				field(t, f, "PortForwardRequest", "port").Options = &descriptorpb.FieldOptions{Packed: proto.Bool(false)}
			},
			want: []string{"field runtime.v1.PortForwardRequest.port: want packed true, got false"},
		},
		{
			name: "field name",
			spoil: func(t *testing.T, f *file) {
				field(t, f, "ContainerConfig", "CDI_devices").Name = proto.String("cdi_devices")
			},
			want: []string{
				"field runtime.v1.ContainerConfig.CDI_devices: missing",
				"field runtime.v1.ContainerConfig.cdi_devices: upstream has none",
			},
		},
		{
			name: "json name",
			spoil: func(t *testing.T, f *file) {
				field(t, f, "PsiStats", "Full").JsonName = proto.String("full")
			},
			want: []string{"field runtime.v1.PsiStats.Full: want json name Full, got full"},
		},
		{
			name: "missing field",
			spoil: func(t *testing.T, f *file) {
				m := message(t, f, "StatusResponse")
				m.Field = m.Field[:len(m.Field)-1]
			},
			want: []string{"field runtime.v1.StatusResponse.features: missing"},
		},
		{
			name: "field too many",
			spoil: func(t *testing.T, f *file) {
				m := message(t, f, "PodIP")
				m.Field = append(m.Field, &descriptorpb.FieldDescriptorProto{
					Name:   proto.String("mask"),
					Number: proto.Int32(7),
					Type:   descriptorpb.FieldDescriptorProto_TYPE_STRING.Enum(),
					Label:  descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
				})
			},
			want: []string{"field runtime.v1.PodIP.mask: upstream has none"},
		},
		{
			name: "deprecation lost",
			spoil: func(t *testing.T, f *file) {
				field(t, f, "LinuxContainerSecurityContext", "apparmor_profile").Options = nil
			},
			want: []string{"field runtime.v1.LinuxContainerSecurityContext.apparmor_profile: want deprecated true, got false"},
		},
		{
			name: "enum value's number",
			spoil: func(t *testing.T, f *file) {
				enum := enum(t, f, "ContainerState")
				enum.Value[3].Number = proto.Int32(4)
			},
			want: []string{"enum value CONTAINER_UNKNOWN in runtime.v1.ContainerState: want number 3, got 4"},
		},
		{
			name: "missing enum value",
			spoil: func(t *testing.T, f *file) {
				enum := enum(t, f, "Signal")
				enum.Value = enum.Value[:len(enum.Value)-1]
			},
			want: []string{"enum value runtime.v1.SIGRTMAX: missing"},
		},
		{
			name: "nested enum",
			spoil: func(t *testing.T, f *file) {
				enum := message(t, f, "SecurityProfile").EnumType[0]
				enum.Value[1].Number, enum.Value[2].Number = enum.Value[2].Number, enum.Value[1].Number
			},
			want: []string{
				"enum value Localhost in runtime.v1.SecurityProfile.ProfileType: want number 2, got 1",
				"enum value Unconfined in runtime.v1.SecurityProfile.ProfileType: want number 1, got 2",
			},
		},
		{
			name: "message too many",
			spoil: func(_ *testing.T, f *file) {
				f.MessageType = append(f.MessageType, &descriptorpb.DescriptorProto{Name: proto.String("Extra")})
			},
			want: []string{"message runtime.v1.Extra: upstream has none"},
		},
		{
			name: "missing rpc",
			spoil: func(t *testing.T, f *file) {
				s := service(t, f, "ImageService")
				s.Method = s.Method[1:]
			},
			want: []string{"rpc runtime.v1.ImageService.ListImages: missing"},
		},
		{
			name: "missing service",
			spoil: func(_ *testing.T, f *file) {
				f.Service = f.Service[:1]
			},
			want: []string{"service runtime.v1.ImageService: missing"},
		},
		{
			name: "rpc's request",
			spoil: func(t *testing.T, f *file) {
				method(t, f, "RuntimeService", "Exec").InputType = proto.String(".runtime.v1.AttachRequest")
			},
			want: []string{"rpc runtime.v1.RuntimeService.Exec: want (runtime.v1.ExecRequest) returns (runtime.v1.ExecResponse), got (runtime.v1.AttachRequest) returns (runtime.v1.ExecResponse)"},
		},
		{
			name: "rpc's response no longer streamed",
			spoil: func(t *testing.T, f *file) {
				method(t, f, "RuntimeService", "GetContainerEvents").ServerStreaming = nil
			},
			want: []string{"rpc runtime.v1.RuntimeService.GetContainerEvents: want (runtime.v1.GetEventsRequest) returns (stream runtime.v1.ContainerEventResponse), got (runtime.v1.GetEventsRequest) returns (runtime.v1.ContainerEventResponse)"},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			want := upstream(t)
			spoiled := protodesc.ToFileDescriptorProto(want)
			row.spoil(t, spoiled)
			// AllowUnresolvable skips checks that a spoiled file must be free to break.
			got, err := protodesc.FileOptions{AllowUnresolvable: true}.New(spoiled, nil)
			if err != nil {
				t.Fatalf("build the spoiled descriptor: %v", err)
			}
			found := Compare(want, got)
			if strings.Join(found, "\n") != strings.Join(row.want, "\n") {
				t.Errorf("found:\n  %s\nwant:\n  %s", strings.Join(found, "\n  "), strings.Join(row.want, "\n  "))
			}
		})
	}
}

func upstream(t *testing.T) protoreflect.FileDescriptor {
	t.Helper()
	file := (&runtimeapi.VersionRequest{}).ProtoReflect().Descriptor().ParentFile()
	if file.Package() != criPackage {
		t.Fatalf("upstream's package is %s, want %s", file.Package(), criPackage)
	}
	return file
}

// ours is the descriptor that the Rust crate embeds, not the text of the .proto:
// what the daemon was built from is what has to be right.
func ours(t *testing.T) protoreflect.FileDescriptor {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), dumpDeadline)
	defer cancel()
	cargo := exec.CommandContext(ctx, "cargo", "run", "--quiet", "--release", "-p", "criw-proto", "--example", "dump-descriptor")
	cargo.Dir = "../.."
	cargo.Stderr = os.Stderr
	encoded, err := cargo.Output()
	if err != nil {
		t.Fatalf("run %s: %v", cargo, errors.Join(err, ctx.Err()))
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(encoded, &set); err != nil {
		t.Fatalf("decode the descriptor set (%d bytes) of %s: %v", len(encoded), cargo, err)
	}
	files, err := protodesc.NewFiles(&set)
	if err != nil {
		t.Fatalf("resolve our descriptor set: %v", err)
	}
	var found protoreflect.FileDescriptor
	files.RangeFilesByPackage(criPackage, func(file protoreflect.FileDescriptor) bool {
		found = file
		return true
	})
	if found == nil {
		t.Fatalf("our descriptor set has no file of package %s", criPackage)
	}
	return found
}

// named finds one element of a descriptor by name; a row that names nothing must not pass.
func named[E interface{ GetName() string }](t *testing.T, all []E, name string) E {
	t.Helper()
	for _, one := range all {
		if one.GetName() == name {
			return one
		}
	}
	t.Fatalf("upstream has no %s", name)
	panic("unreachable: Fatalf ends the test")
}

func message(t *testing.T, f *descriptorpb.FileDescriptorProto, name string) *descriptorpb.DescriptorProto {
	return named(t, f.MessageType, name)
}

func nested(t *testing.T, m *descriptorpb.DescriptorProto, name string) *descriptorpb.DescriptorProto {
	return named(t, m.NestedType, name)
}

func field(t *testing.T, f *descriptorpb.FileDescriptorProto, in, name string) *descriptorpb.FieldDescriptorProto {
	return named(t, message(t, f, in).Field, name)
}

func enum(t *testing.T, f *descriptorpb.FileDescriptorProto, name string) *descriptorpb.EnumDescriptorProto {
	return named(t, f.EnumType, name)
}

func service(t *testing.T, f *descriptorpb.FileDescriptorProto, name string) *descriptorpb.ServiceDescriptorProto {
	return named(t, f.Service, name)
}

func method(t *testing.T, f *descriptorpb.FileDescriptorProto, in, name string) *descriptorpb.MethodDescriptorProto {
	return named(t, service(t, f, in).Method, name)
}
