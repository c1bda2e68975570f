import BPFLoader
import DataplaneModel
import LocalAPI
import Logging
import Netlink
import NetworkTypes

/// Ends connected UDP sockets whose backend has gone: they were translated once, at connect(2), and would send into the
/// void for as long as they live.
actor SocketSweeper {
  private let logger: Logger

  init(logger: Logger) { self.logger = logger }

  /// Looks at the sockets of the node and of its pods.
  ///
  /// - Parameter backends: those that have gone; nil: each socket is asked about.
  func sweep(_ backends: Set<SocketAddress>?, for reconciler: Reconciler) async {
    var places: [NetworkNamespace?] = [nil]
    places += await reconciler.socketNamespaces()
    for place in places {
      do {
        let sockets = try SocketDiagnosis(in: place)
        for family in IPFamily.allCases {
          let connected = try sockets.connectedDatagramSockets(family).filter { backends?.contains($0.peer) ?? true }
          guard !connected.isEmpty else { continue }
          let isServed = await reconciler.areServed(connected)
          for (socket, isServed) in zip(connected, isServed) where !isServed {
            if try sockets.destroy(socket) {
              logger.info("UDP socket of a backend that is gone was ended", metadata: ["backend": "\(socket.peer)"])
            }
          }
        }
      } catch {
        // A pod that has just ended has none.
        logger.debug("UDP sockets cannot be looked at", metadata: ["error": "\(error)"])
      }
    }
  }
}

extension Reconciler {
  /// Of local pods whose sockets are translated.
  func socketNamespaces() -> [NetworkNamespace] {
    guard configuration.socketLB == .all else { return [] }
    return endpoints.values.map { NetworkNamespace(path: $0.netnsPath) }
  }

  /// Whether sockets talk to a backend of what they asked for; true for those that were never translated.
  func areServed(_ connected: [ConnectedSocket]) -> [Bool] {
    connected.map { socket in
      guard let told = try? sockets?.toldPeer(cookie: socket.cookie, peer: socket.peer) else { return true }
      let keys = [FrontendAddress.address(told.address), .node(told.address.family)].map {
        FrontendKey($0, .udp, told.port)
      }
      return keys.contains { key in
        guard let frontend = tables.services.frontends[key] else { return false }
        let id = BackendSetID(service: frontend.service, scope: frontend.nodeScope, family: key.destination.family)
        let set = tables.services.sets[id]
        return set?.backends.contains(socket.peer) == true || set?.draining.contains(socket.peer) == true
      }
    }
  }

  /// Has the sockets looked at that a delta may have left behind.
  func endStaleSockets(_ delta: TableDelta) {
    guard sockets != nil else { return }
    var gone: Set<SocketAddress> = []
    for change in delta.sets.values {
      let before = change.old.map { $0.backends + $0.draining } ?? []
      let after = Set(change.new.map { $0.backends + $0.draining } ?? [])
      gone.formUnion(before.filter { !after.contains($0) })
    }
    // A frontend that goes leaves its backends behind.
    for change in delta.frontends.values where change.old?.service != change.new?.service {
      guard let old = change.old else { continue }
      for scope in BackendScope.allCases {
        for family in IPFamily.allCases {
          let id = BackendSetID(service: old.service, scope: scope, family: family)
          gone.formUnion((tables.services.sets[id] ?? delta.sets[id]?.old)?.backends ?? [])
        }
      }
    }
    guard !gone.isEmpty else { return }
    Task { await socketSweeper.sweep(gone, for: self) }
  }
}
