import KubernetesObjects
import NetworkTypes
import Testing

@Suite("The state of the cluster") struct ClusterStateTests {
  private let api = ObjectKey(namespace: "shop", name: "api")
  private let web = ObjectKey(namespace: "shop", name: "web")

  private func slice(_ name: String, of service: String?, _ address: String = "10.0.0.1") throws -> ObjectChange {
    var slice = EndpointSlice(key: ObjectKey(namespace: "shop", name: name))
    slice.serviceName = service
    slice.family = .v4
    slice.endpoints = [Endpoint(address: try #require(IPAddress(address)))]
    return .upsert(.endpointSlice(slice))
  }

  @Test("a change that changes nothing has no effect")
  func noEffect() throws {
    let state = ClusterState(ownNodeName: "node-1")
    #expect(state.apply(.upsert(.service(Service(key: api)))).services == [api])
    #expect(state.apply(.upsert(.service(Service(key: api)))).isEmpty)
    #expect(state.apply(.delete(.service, web)).isEmpty)
    #expect(state.apply(try slice("api-1", of: "api")).services == [api])
    #expect(state.apply(try slice("api-1", of: "api")).isEmpty)
    for kind in ObjectKind.allCases {
      #expect(state.apply(.delete(kind, ObjectKey(namespace: "x", name: "x"))).isEmpty)
    }
  }

  @Test("slices are found by their Service, sorted by name, before there is a Service too")
  func slicesByService() throws {
    let state = ClusterState(ownNodeName: "node-1")
    for name in ["api-3", "api-1", "api-2"] { _ = state.apply(try slice(name, of: "api")) }
    #expect(state.slices(ofService: api).map(\.key.name) == ["api-1", "api-2", "api-3"])
    #expect(state.service(api) == nil && state.endpointSliceCount == 3)
    #expect(state.apply(try slice("api-2", of: "api", "10.0.0.9")).services == [api])
    #expect(state.slices(ofService: api)[1].endpoints[0].address == IPAddress("10.0.0.9"))
    #expect(Array(state.servicesWithSlices) == [api])
  }

  @Test("a slice that goes to another Service touches both, and one that goes to none or away touches the one it left")
  func slicesThatMove() throws {
    let state = ClusterState(ownNodeName: "node-1")
    _ = state.apply(try slice("s", of: "api"))
    #expect(state.apply(try slice("s", of: "web")).services == [api, web])
    #expect(state.slices(ofService: api).isEmpty && state.slices(ofService: web).count == 1)
    #expect(state.apply(try slice("s", of: nil)).services == [web])
    #expect(state.apply(try slice("s", of: nil)).isEmpty && state.endpointSliceCount == 0)
    _ = state.apply(try slice("s", of: "api"))
    #expect(state.apply(.delete(.endpointSlice, ObjectKey(namespace: "shop", name: "s"))).services == [api])
    #expect(Array(state.servicesWithSlices).isEmpty)
  }

  @Test("a node's change says whether it is this node")
  func nodes() {
    let state = ClusterState(ownNodeName: "node-1")
    let own = state.apply(.upsert(.node(Node(name: "node-1"))))
    #expect(own.nodes == ["node-1"] && own.ownNodeChanged)
    let other = state.apply(.upsert(.node(Node(name: "node-2"))))
    #expect(other.nodes == ["node-2"] && !other.ownNodeChanged)
    #expect(state.ownNode?.name == "node-1" && state.node(named: "node-2") != nil)
    #expect(state.apply(.delete(.node, ObjectKey(namespace: "", name: "node-1"))).ownNodeChanged)
    #expect(state.ownNode == nil)
  }

  @Test("each other kind is named in its own part of the effect, and effects add up")
  func otherKinds() {
    let state = ClusterState(ownNodeName: "node-1")
    var effect = ChangeEffect()
    effect.formUnion(state.apply(.upsert(.pod(Pod(key: api)))))
    effect.formUnion(state.apply(.upsert(.namespace(Namespace(name: "shop")))))
    effect.formUnion(state.apply(.upsert(.networkPolicy(NetworkPolicy(key: web)))))
    effect.formUnion(state.apply(.upsert(.serviceCIDR(ServiceCIDR(name: "kubernetes", cidrs: [])))))
    #expect(effect.pods == [api] && effect.namespaces == ["shop"] && effect.networkPolicies == [web])
    #expect(effect.serviceCIDRsChanged && effect.services.isEmpty && effect.nodes.isEmpty && !effect.isEmpty)
    #expect(state.pod(api) != nil && state.namespace(named: "shop")?.labels["kubernetes.io/metadata.name"] == "shop")
    #expect(state.networkPolicy(web) != nil && state.serviceCIDRs.count == 1)
    #expect(state.apply(.delete(.serviceCIDR, ObjectKey(namespace: "", name: "kubernetes"))).serviceCIDRsChanged)
    #expect(state.apply(.delete(.pod, api)).pods == [api])
  }

  @Test("an object of the most frequent kinds stays small")
  func sizes() {
    #expect(MemoryLayout<Endpoint>.stride <= 56)
    #expect(MemoryLayout<EndpointSlice>.stride <= 96)
    #expect(MemoryLayout<Service>.stride <= 152)
    #expect(MemoryLayout<ServicePort>.stride <= 24)
    #expect(MemoryLayout<ClusterObject>.stride == 8)
  }
}
