import ArgumentParser
import BPFLoader
import LocalAPI
import Netlink
import NetworkTypes

/// A tracked flow, whichever engine tracks it.
struct ConntrackFlow {
  typealias End = TrackedFlow.End
  var proto: UInt8
  var source: End
  var destination: End
  /// Where it goes instead.
  var backend: End?
  /// Whose address it has where it leaves the node.
  var masqueradedAs: End?
  var state: String
  /// nil where the kernel does not tell.
  var silentSeconds: UInt64?
  var secondsLeft: UInt64
  /// Of the policies that it was last judged by; nil: by none.
  var revision: UInt32?

  init(_ flow: TrackedFlow) {
    (proto, source, destination) = (flow.proto, flow.source, flow.destination)
    (backend, masqueradedAs) = (flow.backend, flow.masqueradedAs)
    state = flow.secondsLeft == 0 ? "over" : "\(flow.state)"
    (silentSeconds, secondsLeft) = (flow.silentSeconds, flow.secondsLeft)
    revision = flow.revision == 0 ? nil : flow.revision
  }

  /// - Parameter mask: bits of conntrack marks that are Sluice's.
  init(_ entry: ConntrackEntry, mask: UInt32) {
    proto = entry.original.protocolNumber
    source = End(entry.original.source, entry.original.sourcePort)
    destination = End(entry.original.destination, entry.original.destinationPort)
    let (target, origin) = (
      End(entry.reply.source, entry.reply.sourcePort), End(entry.reply.destination, entry.reply.destinationPort)
    )
    // Of netfilter's own bits for translation a flow may have one that changes nothing.
    backend = entry.status & Status.destinationNAT != 0 && target != destination ? target : nil
    masqueradedAs = entry.status & Status.sourceNAT != 0 && origin != source ? origin : nil
    state = Self.state(entry)
    secondsLeft = UInt64(entry.timeout)
    let marked = entry.mark & mask
    revision = marked == 0 || mask == 0 ? nil : marked >> UInt32(mask.trailingZeroBitCount)
  }

  /// `IPS_…` of linux/netfilter/nf_conntrack_common.h.
  enum Status {
    static let (seenReply, sourceNAT, destinationNAT): (UInt32, UInt32, UInt32) = (1 << 1, 1 << 4, 1 << 5)
  }

  /// In the words that the packet programs have for it.
  private static func state(_ entry: ConntrackEntry) -> String {
    // TCP_CONNTRACK_…: SYN_SENT is 1, ESTABLISHED 3, from FIN_WAIT (4) to CLOSE (8) it ends, SYN_SENT2 is 9.
    switch entry.tcpState {
    case 3: "open"
    case .some(4...8): "closing"
    case .some: "opening"
    case nil: entry.status & Status.seenReply != 0 ? "open" : "opening"
    }
  }

  /// Judged by our policies, or translated.
  static func isOurs(_ entry: ConntrackEntry, mask: UInt32) -> Bool {
    entry.mark & mask != 0 || entry.status & (Status.sourceNAT | Status.destinationNAT) != 0
  }

  var json: JSONValue {
    func text(_ end: End?) -> JSONValue {
      end.map { ["address": .string("\($0.address)"), "port": .int(Int64($0.port))] } ?? .null
    }
    return [
      "protocol": .string(protocolName(proto)), "source": text(source), "destination": text(destination),
      "backend": text(backend), "masqueradedAs": text(masqueradedAs), "state": .string(state),
      "silentSeconds": silentSeconds.map { .int(Int64(clamping: $0)) } ?? .null,
      "secondsLeft": .int(Int64(clamping: secondsLeft)), "revision": revision.map { .int(Int64($0)) } ?? .null,
    ]
  }

  static let headers = [
    "PROTO", "SOURCE", "DESTINATION", "STATE", "BACKEND", "MASQUERADED", "SILENT", "LEFT", "REVISION",
  ]

  var row: [String] {
    [
      protocolName(proto), "\(source)", "\(destination)", state, backend.map { "\($0)" } ?? "-",
      masqueradedAs.map { "\($0)" } ?? "-", silentSeconds.map { "\($0)s" } ?? "-", "\(secondsLeft)s",
      revision.map { "\($0)" } ?? "-",
    ]
  }
}

/// Which flows somebody wants to see: those at which any end is meant.
struct ConntrackSelection: ParsableArguments {
  @Option(help: "Only flows with this address, or one in this prefix, at any end.") var address: AddressFilter?
  @Option(help: "Only flows with this port at any end.") var port: UInt16?
  @Option(help: "Only this protocol: tcp, udp, sctp, icmp, icmpv6 or a number.") var proto: ProtocolFilter?

  func passes(_ flow: ConntrackFlow) -> Bool {
    if let proto, proto.number != flow.proto { return false }
    let ends = [flow.source, flow.destination] + [flow.backend, flow.masqueradedAs].compactMap { $0 }
    if let address, !ends.contains(where: { address.prefix.contains($0.address) }) { return false }
    if let port, !ends.contains(where: { $0.port == port }) { return false }
    return true
  }
}

struct AddressFilter: ExpressibleByArgument {
  var prefix: CIDR

  init?(argument: String) {
    guard let prefix = CIDR(argument) ?? IPAddress(argument).map({ CIDR(host: $0) }) else { return nil }
    self.prefix = prefix
  }
}

struct ProtocolFilter: ExpressibleByArgument {
  var number: UInt8

  init?(argument: String) {
    guard let number = UInt8(argument) ?? (0...255).first(where: { protocolName($0) == argument }) else { return nil }
    self.number = number
  }

  static let allValueStrings = ["tcp", "udp", "sctp", "icmp", "icmpv6"]
}
