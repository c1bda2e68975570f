import DataplaneModel
import KubernetesObjects
import NetworkTypes
import ServiceCompiler
import Testing

/// The cost of a change is the size of the change, not of the cluster (services.md, point 19).
@Suite("Work per change")
struct WorkTests {
  /// Counts the service ports that were asked for: each compiled port asks once.
  private struct CountingNumbering: ServiceNumbering {
    var numbering = VolatileNumbering()
    var questions = 0
    mutating func number(of name: ServicePortName) -> ServicePortID? {
      questions += 1
      return numbering.number(of: name)
    }
  }

  @Test("among 10,000 Services with 10 endpoints, one changed slice compiles one Service into a delta of one set")
  func oneSlice() throws {
    let state = ClusterState(ownNodeName: "here")
    let (http, target) = (try #require(Port(80)), try #require(Port(8080)))
    func key(_ index: Int) -> ObjectKey { ObjectKey(namespace: "ns-\(index % 50)", name: "s-\(index)") }
    func slice(_ index: Int, endpoints: Int) -> EndpointSlice {
      var slice = EndpointSlice(key: ObjectKey(namespace: key(index).namespace, name: "s-\(index)-x"))
      slice.serviceName = key(index).name
      slice.family = .v4
      slice.ports = [EndpointPort(port: target)]
      slice.endpoints = (0..<endpoints).map {
        Endpoint(address: IPAddress(v4: 0x0b00_0000 + UInt32(index * 16 + $0)), nodeName: "node-\($0)")
      }
      return slice
    }
    for index in 0..<10_000 {
      var service = Service(key: key(index))
      service.clusterIPs = [IPAddress(v4: 0x0a60_0000 + UInt32(index))]
      service.ports = [ServicePort(port: http)]
      state.apply(.upsert(.service(service)))
      state.apply(.upsert(.endpointSlice(slice(index, endpoints: 10))))
    }
    var compiler = ServiceCompiler(nodeName: "here", numbering: CountingNumbering())
    var tables = Tables()
    let all = compiler.compile(state.services.keys, in: state, tables: tables)
    tables.apply(all)
    #expect(all.frontends.count == 10_000 && all.sets.count == 10_000 && all.serviceAddresses.added.count == 10_000)
    #expect(compiler.numbering.questions == 10_000)

    for count in [11, 9, 0, 10] {
      let asked = compiler.numbering.questions
      let effect = state.apply(.upsert(.endpointSlice(slice(4711, endpoints: count))))
      #expect(effect.services == [key(4711)])
      let delta = compiler.compile(effect.services, in: state, tables: tables)
      #expect(delta.sets.count == 1 && delta.sets.values.first?.new?.backends.count == count)
      #expect(delta.frontends.isEmpty && delta.serviceAddresses.isEmpty && delta.endpoints.isEmpty)
      #expect(compiler.numbering.questions == asked + 1)
      tables.apply(delta)
    }

    let effect = state.apply(.delete(.service, key(4711)))
    let delta = compiler.compile(effect.services, in: state, tables: tables)
    #expect(delta.sets.count == 1 && delta.frontends.count == 1 && delta.serviceAddresses.removed.count == 1)
  }

  @Test(
    "what changes nothing that packets can meet makes no delta", arguments: ["condition", "annotation", "selector"])
  func noDelta(_ what: String) throws {
    let spec = "clusterIP: 10.96.0.1, ports: [{port: 80}]"
    let before = slice([pod("10.244.2.2"), pod("10.244.2.3", .notReady)])
    var world = try World(service(spec), before)
    let delta =
      switch what {
      case "condition": try world.apply(slice([pod("10.244.2.2"), pod("10.244.2.3", .ended)]))
      case "annotation": try world.apply(before.replacing("  labels:", with: "  annotations: {a: b}\n  labels:"))
      default: try world.apply(service(spec + ", selector: {app: x}"))
      }
    #expect(delta.isEmpty)
  }

  @Test("a change of one port's endpoints touches no other port's set")
  func onePort() throws {
    let spec = "clusterIP: 10.96.0.1, ports: [{name: a, port: 80}, {name: b, port: 81}]"
    let a = slice([pod("10.244.2.2")], name: "a", ports: "{name: a, port: 8080}")
    var world = try World(service(spec), a, slice([pod("10.244.2.3")], name: "b", ports: "{name: b, port: 8081}"))
    let delta = world.delete(.endpointSlice, "a")
    #expect(delta.sets.keys.map { world.compiler.names[$0.service]?.port } == ["a"])
    #expect(delta.frontends.isEmpty)
  }
}
