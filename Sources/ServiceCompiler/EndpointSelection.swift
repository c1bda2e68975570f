import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// Which endpoints of one service port new flows may use, per scope.
struct EndpointSelection {
  /// Usable from anywhere, after topology.
  var cluster: [SocketAddress] = []
  /// On this node; no topology.
  var local: [SocketAddress] = []
  /// On this node and ready: what a load balancer's health check counts.
  var localReady: [SocketAddress] = []
  /// Still serving what they have, in the cluster and here.
  var serving: [SocketAddress] = []
  var localServing: [SocketAddress] = []

  private struct Candidate {
    var isReady: Bool
    var isServing: Bool
    var isTerminating: Bool
    var isLocal: Bool
    var zoneHints: [String]
    var nodeHints: [String]
  }

  /// Merges all slices. An address that stands in several slices counts once; one that is not terminating wins.
  init(
    slices: [EndpointSlice], family: IPFamily, port: ServicePort, nodeName: String, zone: String?
  ) {
    var candidates: [SocketAddress: Candidate] = [:]
    for slice in slices where slice.family == family && !slice.isHeadless {
      for slicePort in slice.ports where slicePort.name == port.name && slicePort.proto == port.proto {
        for endpoint in slice.endpoints {
          let address = SocketAddress(endpoint.address, slicePort.port)
          if let known = candidates[address], !known.isTerminating || endpoint.terminating { continue }
          candidates[address] = Candidate(
            isReady: endpoint.ready, isServing: endpoint.serving, isTerminating: endpoint.terminating,
            isLocal: endpoint.nodeName == nodeName, zoneHints: endpoint.zoneHints, nodeHints: endpoint.nodeHints)
        }
      }
    }
    // Sorted: the first order of slots must not depend on hashing.
    let all = candidates.sorted { $0.key < $1.key }
    func addresses(_ pairs: [(key: SocketAddress, value: Candidate)]) -> [SocketAddress] { pairs.map(\.key) }

    let ready = all.filter(\.value.isReady)
    let ending = all.filter { $0.value.isServing && $0.value.isTerminating }
    cluster = addresses(ready.isEmpty ? ending : Self.nearest(ready, nodeName: nodeName, zone: zone))
    localReady = addresses(ready.filter(\.value.isLocal))
    local = localReady.isEmpty ? addresses(ending.filter(\.value.isLocal)) : localReady
    serving = addresses(all.filter(\.value.isServing))
    localServing = addresses(all.filter { $0.value.isServing && $0.value.isLocal })
  }

  /// Hints only count when every ready endpoint has some and one of them names us.
  private static func nearest(
    _ ready: [(key: SocketAddress, value: Candidate)], nodeName: String, zone: String?
  ) -> [(key: SocketAddress, value: Candidate)] {
    if ready.allSatisfy({ !$0.value.nodeHints.isEmpty }) {
      let here = ready.filter { $0.value.nodeHints.contains(nodeName) }
      if !here.isEmpty { return here }
    }
    if let zone, ready.allSatisfy({ !$0.value.zoneHints.isEmpty }) {
      let here = ready.filter { $0.value.zoneHints.contains(zone) }
      if !here.isEmpty { return here }
    }
    return ready
  }
}
