import BPFLoader
import Logging
import Netlink
import NetworkTypes

/// Ends UDP flows that conntrack, or the packet programs' own tracking, would send where the tables no longer do, and flows
/// of addresses that changed hands.
///
/// Beside the reconciler, not in it: the kernel walks its whole flow table for each request (about 4 ms at 262,144
/// buckets), whatever the filter. What gathers during one walk shares the next. Each flow is judged by the tables as they
/// are when it is seen: one that began after the change it was called for is left alone.
actor FlowSweeper {
  /// An address and port whose flows have to be looked at.
  struct Target: Sendable, Hashable {
    var proto: L4Protocol
    var destination: SocketAddress
  }

  private struct Walk: Hashable {
    var family: IPFamily
    var proto: L4Protocol
    var port: Port
  }

  private let conntrack: ConntrackSocket
  /// nil: netfilter tracks everything.
  private var packets: PacketFlows?
  private let logger: Logger
  private var pending: Set<Target> = []
  private var isRunning = false
  private(set) var removed = 0

  init(conntrack: ConntrackSocket, packets: PacketFlows?, logger: Logger) {
    (self.conntrack, self.packets, self.logger) = (conntrack, packets, logger)
  }

  /// From now on these: maps have grown.
  func follow(_ packets: PacketFlows) { self.packets = packets }

  func sweep(_ targets: Set<Target>, for reconciler: Reconciler) async {
    pending.formUnion(targets)
    guard !isRunning else { return }
    isRunning = true
    while !pending.isEmpty {
      let targets = pending
      pending = []
      let walks = Set(
        targets.map { Walk(family: $0.destination.address.family, proto: $0.proto, port: $0.destination.port) })
      for walk in walks { await sweep(walk, targets, reconciler) }
      endUntranslated(to: Set(targets.filter { $0.proto == .udp }.map(\.destination)))
    }
    isRunning = false
  }

  private func endUntranslated(to places: Set<SocketAddress>) {
    do { try packets?.end(datagramsTo: places) } catch {
      logger.error("stale UDP flows may stay", metadata: ["error": "\(error)"])
    }
  }

  private func sweep(_ walk: Walk, _ targets: Set<Target>, _ reconciler: Reconciler) async {
    do {
      let found = try conntrack.entries(
        matching: ConntrackFilter(
          family: walk.family, protocolNumber: walk.proto.rawValue, originalDestinationPort: walk.port.number)
      ).filter {
        targets.contains(Target(proto: walk.proto, destination: SocketAddress($0.original.destination, walk.port)))
      }
      guard !found.isEmpty else { return }
      for (entry, isServed) in zip(found, await reconciler.areServed(found)) where !isServed {
        if try conntrack.delete(entry) { removed += 1 }
      }
    } catch {
      logger.error("stale UDP flows may stay", metadata: ["port": "\(walk.port)", "error": "\(error)"])
    }
  }

  /// Ends every flow of these addresses, whatever its protocol: another pod has them now.
  func end(flowsOf addresses: Set<IPAddress>) {
    do { try packets?.end(flowsOf: addresses) } catch {
      logger.error("flows of a reused address may stay", metadata: ["error": "\(error)"])
    }
    for family in IPFamily.allCases where addresses.contains(where: { $0.family == family }) {
      do {
        for entry in try conntrack.entries(matching: ConntrackFilter(family: family)) {
          let ends = [entry.original.source, entry.original.destination, entry.reply.source, entry.reply.destination]
          guard ends.contains(where: addresses.contains) else { continue }
          if try conntrack.delete(entry) { removed += 1 }
        }
      } catch {
        logger.error("flows of a reused address may stay", metadata: ["error": "\(error)"])
      }
    }
  }

  /// The same for every UDP flow, after a time in which nobody watched. One filtered listing; flows to addresses that
  /// are no Service's are not ours.
  func sweepAll(for reconciler: Reconciler) async {
    if packets != nil { endUntranslated(to: await reconciler.datagramFrontends()) }
    do {
      let found = try conntrack.entries(matching: ConntrackFilter(protocolNumber: L4Protocol.udp.rawValue))
      let judged = await reconciler.areServed(found)
      let isOurs = await reconciler.areFrontends(found)
      for (index, entry) in found.enumerated() where isOurs[index] && !judged[index] {
        if try conntrack.delete(entry) { removed += 1 }
      }
    } catch {
      logger.error("stale UDP flows may stay", metadata: ["error": "\(error)"])
    }
  }
}
