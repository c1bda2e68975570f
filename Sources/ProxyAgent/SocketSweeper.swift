import Glibc
import DataplaneModel
import Logging
import Netlink
import NetworkTypes

/// Ends connected UDP sockets whose backend has gone: they were translated once, at connect(2), and would send into the
/// void for as long as they live. So would one of the node's that was connected before its Service was there, where packets
/// of the node's are not translated.
///
/// Beside the reconciler, not in it: each look is a thread and two listings for every local pod. What gathers during one
/// look shares the next.
actor SocketSweeper {
  private let logger: Logger
  private var pending: Set<SocketAddress> = []
  private var pendingAtNode: Set<SocketAddress> = []
  private var wantsAll = false
  private var isRunning = false
  private var hasWarned = false

  init(logger: Logger) { self.logger = logger }

  /// Looks at the sockets of the node and of its pods.
  ///
  /// - Parameters:
  ///   - peers: of whom the sockets are asked about: backends that have gone; nil: each socket is.
  ///   - onlyNode: no pod's are.
  func sweep(_ peers: Set<SocketAddress>?, onlyNode: Bool = false, for reconciler: Reconciler) async {
    if let peers {
      if onlyNode { pendingAtNode.formUnion(peers) } else { pending.formUnion(peers) }
    } else {
      wantsAll = true
    }
    guard !isRunning else { return }
    isRunning = true
    while wantsAll || !pending.isEmpty || !pendingAtNode.isEmpty {
      let pods = wantsAll ? nil : pending
      let node = pods.map { $0.union(pendingAtNode) }
      (pending, pendingAtNode, wantsAll) = ([], [], false)
      await look(node: node, pods: pods, reconciler)
      Task {
        // A connect(2) that was under way got its backend before, and its peer after we looked.
        try? await Task.sleep(for: .seconds(1))
        await look(node: node, pods: pods, reconciler)
      }
    }
    isRunning = false
  }

  private func look(node: Set<SocketAddress>?, pods: Set<SocketAddress>?, _ reconciler: Reconciler) async {
    var places: [NetworkNamespace?] = [nil]
    if pods?.isEmpty != true { places += await reconciler.socketNamespaces() }
    for place in places {
      let peers = place == nil ? node : pods
      let sockets: SocketDiagnosis
      do {
        sockets = try SocketDiagnosis(in: place)
      } catch {
        // A pod that has just ended has no namespace any more.
        if error.errno != ENOENT { warn("a pod's UDP sockets cannot be asked for", error) }
        continue
      }
      for family in IPFamily.allCases {
        do {
          let connected = try sockets.connectedDatagramSockets(family).filter { peers?.contains($0.peer) ?? true }
          guard !connected.isEmpty else { continue }
          for (socket, isServed) in zip(connected, await reconciler.areServed(connected, areNodes: place == nil))
          where !isServed {
            end(socket, sockets)
          }
        } catch {
          warn("UDP sockets cannot be listed", error)
        }
      }
    }
  }

  private func end(_ socket: ConnectedSocket, _ sockets: SocketDiagnosis) {
    do {
      if try sockets.destroy(socket) {
        logger.info("UDP socket that nobody would answer was ended", metadata: ["peer": "\(socket.peer)"])
      }
    } catch {
      warn("UDP sockets that nobody would answer cannot be ended (CONFIG_INET_DIAG_DESTROY)", error)
    }
  }

  /// Once: the kernel that refuses one refuses all.
  private func warn(_ what: String, _ error: any Error) {
    guard !hasWarned else { return }
    hasWarned = true
    logger.warning("\(what)", metadata: ["error": "\(error)"])
  }
}
