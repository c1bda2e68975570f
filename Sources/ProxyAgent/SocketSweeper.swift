import DataplaneModel
import Logging
import Netlink
import NetworkTypes

/// Ends connected UDP sockets whose backend has gone: they were translated once, at connect(2), and would send into the
/// void for as long as they live.
///
/// Beside the reconciler, not in it: each look is a thread and two listings for every local pod. What gathers during one
/// look shares the next.
actor SocketSweeper {
  private let logger: Logger
  private var pending: Set<SocketAddress> = []
  private var wantsAll = false
  private var isRunning = false
  private var hasWarned = false

  init(logger: Logger) { self.logger = logger }

  /// Looks at the sockets of the node and of its pods.
  ///
  /// - Parameter backends: those that have gone; nil: each socket is asked about.
  func sweep(_ backends: Set<SocketAddress>?, for reconciler: Reconciler) async {
    if let backends { pending.formUnion(backends) } else { wantsAll = true }
    guard !isRunning else { return }
    isRunning = true
    while wantsAll || !pending.isEmpty {
      let targets = wantsAll ? nil : pending
      (pending, wantsAll) = ([], false)
      await look(targets, reconciler)
      // A connect(2) that was under way got its backend before, and its peer after we looked.
      try? await Task.sleep(for: .seconds(1))
      await look(targets, reconciler)
    }
    isRunning = false
  }

  private func look(_ backends: Set<SocketAddress>?, _ reconciler: Reconciler) async {
    var places: [NetworkNamespace?] = [nil]
    places += await reconciler.socketNamespaces()
    for place in places {
      // A pod that has just ended has no namespace any more.
      guard let sockets = try? SocketDiagnosis(in: place) else { continue }
      for family in IPFamily.allCases {
        do {
          let connected = try sockets.connectedDatagramSockets(family).filter { backends?.contains($0.peer) ?? true }
          guard !connected.isEmpty else { continue }
          for (socket, isServed) in zip(connected, await reconciler.areServed(connected)) where !isServed {
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
        logger.info("UDP socket of a backend that is gone was ended", metadata: ["backend": "\(socket.peer)"])
      }
    } catch {
      warn("UDP sockets of a backend that is gone cannot be ended (CONFIG_INET_DIAG_DESTROY)", error)
    }
  }

  /// Once: the kernel that refuses one refuses all.
  private func warn(_ what: String, _ error: any Error) {
    guard !hasWarned else { return }
    hasWarned = true
    logger.warning("\(what)", metadata: ["error": "\(error)"])
  }
}
