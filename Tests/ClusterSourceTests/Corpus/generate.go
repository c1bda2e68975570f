// Writes what a Kubernetes API server sends, by Kubernetes' own libraries: for each kind that Sluice reads a list and a
// watch of objects with random fields, as protobuf and as JSON.
//
// Not part of the build: what it writes is committed beside it. It needs Debian's golang-k8s-apimachinery-dev,
// golang-k8s-api-dev and golang-k8s-sigs-randfill-dev:
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go run generate.go FOLDER
package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/randfill"
)

const objects = 8

func main() {
	scheme := runtime.NewScheme()
	must(core.AddToScheme(scheme))
	must(discovery.AddToScheme(scheme))
	must(networking.AddToScheme(scheme))
	codecs := serializer.NewCodecFactory(scheme)
	random := newFiller(20261122)

	for _, kind := range []schema.GroupVersionKind{
		core.SchemeGroupVersion.WithKind("Service"), core.SchemeGroupVersion.WithKind("Node"),
		core.SchemeGroupVersion.WithKind("Pod"), core.SchemeGroupVersion.WithKind("Namespace"),
		discovery.SchemeGroupVersion.WithKind("EndpointSlice"), networking.SchemeGroupVersion.WithKind("NetworkPolicy"),
		networking.SchemeGroupVersion.WithKind("ServiceCIDR"),
	} {
		list, err := scheme.New(kind.GroupVersion().WithKind(kind.Kind + "List"))
		must(err)
		var events []watch.Event
		for _, form := range []watch.EventType{watch.Added, watch.Modified, watch.Deleted} {
			events = append(events, watch.Event{Type: form, Object: filled(scheme, kind, random)})
		}
		bookmark, err := scheme.New(kind)
		must(err)
		accessor, err := metaOf(bookmark)
		must(err)
		accessor.SetResourceVersion("4711")
		accessor.SetAnnotations(map[string]string{meta.InitialEventsAnnotationKey: "true"})
		events = append(events, watch.Event{Type: watch.Bookmark, Object: bookmark})
		seconds := int32(7)
		events = append(events, watch.Event{Type: watch.Error, Object: &meta.Status{
			Status: meta.StatusFailure, Code: 410, Reason: meta.StatusReasonExpired, Message: "too old",
			Details: &meta.StatusDetails{RetryAfterSeconds: seconds},
		}})
		fillList(list, scheme, kind, random)

		for _, form := range []struct{ mediaType, ending string }{
			{runtime.ContentTypeProtobuf, "pb"}, {runtime.ContentTypeJSON, "json"},
		} {
			info, ok := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), form.mediaType)
			if !ok {
				panic(form.mediaType)
			}
			encoder := codecs.EncoderForVersion(info.Serializer, kind.GroupVersion())
			whole, err := runtime.Encode(encoder, list)
			must(err)
			write(kind.Kind+"List."+form.ending, whole)

			var stream bytes.Buffer
			frames := streaming.NewEncoder(
				info.StreamSerializer.Framer.NewFrameWriter(&stream),
				codecs.EncoderForVersion(info.StreamSerializer.Serializer, kind.GroupVersion()))
			for _, event := range events {
				raw, err := runtime.Encode(encoder, event.Object)
				must(err)
				must(frames.Encode(&meta.WatchEvent{Type: string(event.Type), Object: runtime.RawExtension{Raw: raw}}))
			}
			write(kind.Kind+"Watch."+form.ending, stream.Bytes())
		}
	}
}

func filled(scheme *runtime.Scheme, kind schema.GroupVersionKind, random *randfill.Filler) runtime.Object {
	object, err := scheme.New(kind)
	must(err)
	random.Fill(object)
	object.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	return object
}

func fillList(list runtime.Object, scheme *runtime.Scheme, kind schema.GroupVersionKind, random *randfill.Filler) {
	next := func() runtime.Object { return filled(scheme, kind, random) }
	remaining := int64(1234)
	metadata := meta.ListMeta{ResourceVersion: "9007199254740993", Continue: "token", RemainingItemCount: &remaining}
	for range objects {
		switch list := list.(type) {
		case *core.ServiceList:
			list.ListMeta, list.Items = metadata, append(list.Items, *next().(*core.Service))
		case *core.NodeList:
			list.ListMeta, list.Items = metadata, append(list.Items, *next().(*core.Node))
		case *core.PodList:
			list.ListMeta, list.Items = metadata, append(list.Items, *next().(*core.Pod))
		case *core.NamespaceList:
			list.ListMeta, list.Items = metadata, append(list.Items, *next().(*core.Namespace))
		case *discovery.EndpointSliceList:
			list.ListMeta, list.Items = metadata, append(list.Items, *next().(*discovery.EndpointSlice))
		case *networking.NetworkPolicyList:
			list.ListMeta, list.Items = metadata, append(list.Items, *next().(*networking.NetworkPolicy))
		case *networking.ServiceCIDRList:
			list.ListMeta, list.Items = metadata, append(list.Items, *next().(*networking.ServiceCIDR))
		}
	}
}

func metaOf(object runtime.Object) (meta.Object, error) {
	return object.(meta.ObjectMetaAccessor).GetObjectMeta(), nil
}

// Fields as they may be: few elements, short texts, zero values now and then, times to the second.
func newFiller(seed int64) *randfill.Filler {
	filler := randfill.NewWithSeed(seed).NilChance(0.3).NumElements(1, 2).MaxDepth(12)
	filler.Funcs(
		func(text *string, c randfill.Continue) {
			if c.Intn(6) == 0 {
				*text = ""
				return
			}
			*text = strings.Repeat(string(rune('a'+c.Intn(26))), 1+c.Intn(3)) + fmt.Sprint(c.Intn(100))
			if c.Intn(8) == 0 {
				*text += "ü\"\\\n"
			}
		},
		func(number *int32, c randfill.Continue) { *number = []int32{0, 1, 80, 65535, 1 << 30, -1}[c.Intn(6)] },
		func(number *int64, c randfill.Continue) { *number = []int64{0, 1, 80, 1 << 40, -1}[c.Intn(5)] },
		func(flag *bool, c randfill.Continue) { *flag = c.Bool() },
		func(value *meta.Time, c randfill.Continue) {
			if c.Intn(3) > 0 {
				*value = meta.NewTime(time.Unix(c.Int63n(4_000_000_000), 0).UTC())
			}
		},
		func(value *meta.MicroTime, c randfill.Continue) { *value = meta.NewMicroTime(time.Unix(1, 0)) },
		func(value *resource.Quantity, c randfill.Continue) { *value = resource.MustParse("17Mi") },
		func(value *runtime.RawExtension, c randfill.Continue) {},
		func(value *meta.FieldsV1, c randfill.Continue) { value.SetRawString(`{"f:a":{}}`) },
		func(value *intstr.IntOrString, c randfill.Continue) {
			*value = intstr.FromInt32(int32(c.Intn(3) * 40))
			if c.Bool() {
				*value = intstr.FromString([]string{"", "http", "80"}[c.Intn(3)])
			}
		},
		// Most of a pod is none of ours, and large.
		func(value *core.Volume, c randfill.Continue) { value.Name = "v" },
		func(value *core.Affinity, c randfill.Continue) {},
		func(value *core.EphemeralContainer, c randfill.Continue) { value.Name = "e" },
		func(value *core.Probe, c randfill.Continue) {},
		func(value *core.Lifecycle, c randfill.Continue) {},
		func(value *core.SecurityContext, c randfill.Continue) {},
		func(value *core.EnvVar, c randfill.Continue) { value.Name = "X" },
		func(value *core.ContainerStatus, c randfill.Continue) { value.Name = "c" },
	)
	return filler
}

func write(name string, content []byte) {
	must(os.WriteFile(os.Args[1]+"/"+name, content, 0o644))
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
