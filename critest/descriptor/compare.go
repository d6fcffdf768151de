// Package descriptor checks our CRI .proto against upstream's, so that a wrong
// number or type is a failing test and not a field that silently stays empty
// between the kubelet and the daemon.
package descriptor

import (
	"fmt"
	"sort"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// Compare lists every difference that matters on the wire, in the JSON form or to
// gRPC's routing: an empty list means that clients cannot tell the two apart.
// Comments, order, file names and Go options do not matter.
// Each line says first what upstream (want) has, then what we (got) have.
func Compare(want, got protoreflect.FileDescriptor) []string {
	c := &comparison{}
	if want.Package() != got.Package() {
		c.addf("package: want %s, got %s", want.Package(), got.Package())
	}
	if want.Syntax() != got.Syntax() {
		c.addf("syntax: want %s, got %s", want.Syntax(), got.Syntax())
	}
	c.enums(want.Enums(), got.Enums())
	c.messages(want.Messages(), got.Messages())
	c.services(want.Services(), got.Services())
	sort.Strings(c.found)
	return c.found
}

type comparison struct{ found []string }

func (c *comparison) addf(format string, args ...any) {
	c.found = append(c.found, fmt.Sprintf(format, args...))
}

// list is what all descriptor lists of protoreflect have in common.
type list[D protoreflect.Descriptor] interface {
	Len() int
	Get(i int) D
	ByName(name protoreflect.Name) D
}

// pairs reports what only one side has and hands what both have to each.
func pairs[D protoreflect.Descriptor](c *comparison, kind string, want, got list[D], each func(want, got D)) {
	for i := range want.Len() {
		w := want.Get(i)
		g := got.ByName(w.Name())
		if any(g) == nil {
			c.addf("%s %s: missing", kind, w.FullName())
			continue
		}
		each(w, g)
	}
	for i := range got.Len() {
		g := got.Get(i)
		if any(want.ByName(g.Name())) == nil {
			c.addf("%s %s: upstream has none", kind, g.FullName())
		}
	}
}

func (c *comparison) enums(want, got protoreflect.EnumDescriptors) {
	pairs(c, "enum", want, got, func(w, g protoreflect.EnumDescriptor) {
		pairs(c, "enum value", w.Values(), g.Values(), func(wv, gv protoreflect.EnumValueDescriptor) {
			if wv.Number() != gv.Number() {
				c.addf("enum value %s in %s: want number %d, got %d", wv.Name(), w.FullName(), wv.Number(), gv.Number())
			}
		})
	})
}

func (c *comparison) messages(want, got protoreflect.MessageDescriptors) {
	pairs(c, "message", want, got, func(w, g protoreflect.MessageDescriptor) {
		// Entry messages of maps are compared like any other; only the mark tells them apart.
		if w.IsMapEntry() != g.IsMapEntry() {
			c.addf("message %s: want map entry %t, got %t", w.FullName(), w.IsMapEntry(), g.IsMapEntry())
		}
		c.enums(w.Enums(), g.Enums())
		c.messages(w.Messages(), g.Messages())
		pairs(c, "oneof", w.Oneofs(), g.Oneofs(), func(_, _ protoreflect.OneofDescriptor) {})
		pairs(c, "field", w.Fields(), g.Fields(), func(wf, gf protoreflect.FieldDescriptor) {
			c.field(wf, gf)
		})
	})
}

func (c *comparison) field(w, g protoreflect.FieldDescriptor) {
	for _, property := range []struct {
		name string
		of   func(protoreflect.FieldDescriptor) any
	}{
		{"number", func(f protoreflect.FieldDescriptor) any { return f.Number() }},
		{"type", func(f protoreflect.FieldDescriptor) any { return typeOf(f) }},
		{"label", func(f protoreflect.FieldDescriptor) any { return f.Cardinality() }},
		{"map", func(f protoreflect.FieldDescriptor) any { return f.IsMap() }},
		{"packed", func(f protoreflect.FieldDescriptor) any { return f.IsPacked() }},
		{"presence", func(f protoreflect.FieldDescriptor) any { return f.HasPresence() }},
		{"oneof", func(f protoreflect.FieldDescriptor) any { return oneofOf(f) }},
		{"json name", func(f protoreflect.FieldDescriptor) any { return f.JSONName() }},
		{"deprecated", func(f protoreflect.FieldDescriptor) any { return optionsOf(f).GetDeprecated() }},
		{"debug_redact", func(f protoreflect.FieldDescriptor) any { return optionsOf(f).GetDebugRedact() }},
	} {
		if want, got := property.of(w), property.of(g); want != got {
			c.addf("field %s: want %s %v, got %v", w.FullName(), property.name, want, got)
		}
	}
}

func (c *comparison) services(want, got protoreflect.ServiceDescriptors) {
	pairs(c, "service", want, got, func(w, g protoreflect.ServiceDescriptor) {
		pairs(c, "rpc", w.Methods(), g.Methods(), func(wm, gm protoreflect.MethodDescriptor) {
			if want, got := signature(wm), signature(gm); want != got {
				c.addf("rpc %s: want %s, got %s", wm.FullName(), want, got)
			}
		})
	})
}

// typeOf names a scalar by its kind and a message or enum by its full name too.
func typeOf(f protoreflect.FieldDescriptor) string {
	switch {
	case f.Message() != nil:
		return fmt.Sprintf("%s %s", f.Kind(), f.Message().FullName())
	case f.Enum() != nil:
		return fmt.Sprintf("%s %s", f.Kind(), f.Enum().FullName())
	default:
		return f.Kind().String()
	}
}

func oneofOf(f protoreflect.FieldDescriptor) protoreflect.Name {
	if oneof := f.ContainingOneof(); oneof != nil {
		return oneof.Name()
	}
	return ""
}

func signature(m protoreflect.MethodDescriptor) string {
	stream := map[bool]string{true: "stream "}
	return fmt.Sprintf("(%s%s) returns (%s%s)",
		stream[m.IsStreamingClient()], m.Input().FullName(),
		stream[m.IsStreamingServer()], m.Output().FullName())
}

// optionsOf may return nil, whose getters answer the defaults.
func optionsOf(f protoreflect.FieldDescriptor) *descriptorpb.FieldOptions {
	options, _ := f.Options().(*descriptorpb.FieldOptions)
	return options
}
