import DataplaneModel
import NetworkTypes
import Testing

@testable import BPFLoader
@testable import PolicyWorlds

/// A frame as a test reads it.
struct SeenPacket: Equatable, CustomStringConvertible {
  var source: IPAddress
  var destination: IPAddress
  var proto: UInt8
  var sourcePort: UInt16
  var destinationPort: UInt16
  var tcpFlags: UInt8 = 0
  var icmpType: UInt8 = 0
  var hops: UInt8
  var checksumsAreRight: Bool

  var description: String {
    "\(source):\(sourcePort) -> \(destination):\(destinationPort)/\(proto)\(checksumsAreRight ? "" : ", wrong checksum")"
  }

  /// nil where the frame is no IP packet.
  init?(_ frame: [UInt8]) {
    let packet = Array(frame.dropFirst(14))
    guard let headers = PacketHeaders(packet), let proto = headers.protocolNumber else { return nil }
    (source, destination, self.proto) = (headers.source, headers.destination, proto)
    sourcePort = headers.sourcePort ?? 0
    destinationPort = headers.destinationPort ?? 0
    tcpFlags = headers.tcpFlags?.rawValue ?? 0
    icmpType = headers.icmpType ?? 0
    hops = packet[source.family == .v4 ? 8 : 7]
    let headerLength = source.family == .v4 ? Int(packet[0] & 15) * 4 : 40
    let transport = Array(packet[headerLength..<headers.totalLength])
    checksumsAreRight = Checksums.wrong(in: packet).isEmpty
    if headers.icmpType == (source.family == .v4 ? 8 : 128) {
      sourcePort = UInt16(transport[4]) << 8 | UInt16(transport[5])
    }
  }
}

/// Where a frame is, on its way through the node.
enum PacketPlace: Hashable, CustomStringConvertible {
  case pod(String)
  case node
  case outside

  var description: String {
    switch self {
    case .pod(let device): device
    case .node: "node"
    case .outside: "outside"
    }
  }
}

extension PacketRunner {
  enum Journey {
    case arrived(PacketPlace, [UInt8])
    case dropped(UInt8)
    /// An answer by the node itself.
    case answered([UInt8])
  }

  /// Through every program that the packet meets, as the node's own routing would lead it.
  func travel(_ frame: [UInt8], from place: PacketPlace) throws -> Journey {
    let (program, device): (Program, String) =
      if case .pod(let name) = place { (.fromPod, name) } else { (.fromWire, Self.uplink) }
    let entered = try run(program, at: device, frame)
    guard let packet = SeenPacket(entered.frame) else { return .dropped(0) }
    let target = tables.node.endpoint(with: packet.destination)?.interface
    switch entered.verdict {
    case .dropped(let reason): return .dropped(reason)
    case .redirected:
      if entered.events.contains(where: { $0.kind == 4 }) { return .answered(entered.frame) }
      return .arrived(target.map { .pod($0) } ?? .node, entered.frame)
    case .passed: break
    }
    let result: PacketRunner.Result
    let end: PacketPlace
    if let target {
      result = try run(.toPod, at: target, arrivedBy: device, entered.frame)
      end = .pod(target)
    } else if tables.node.ownAddresses.contains(packet.destination) {
      return .arrived(.node, entered.frame)
    } else {
      result = try run(.toWire, at: Self.uplink, arrivedBy: device, entered.frame)
      end = .outside
    }
    if case .dropped(let reason) = result.verdict { return .dropped(reason) }
    return .arrived(end, result.frame)
  }

  /// From a process of the node.
  func travelFromNode(_ frame: [UInt8]) throws -> Journey {
    guard let packet = SeenPacket(frame) else { return .dropped(0) }
    if let target = tables.node.endpoint(with: packet.destination)?.interface {
      let result = try run(.toPod, at: target, frame)
      if case .dropped(let reason) = result.verdict { return .dropped(reason) }
      return .arrived(.pod(target), result.frame)
    }
    let result = try run(.toWire, at: Self.uplink, frame)
    if case .dropped(let reason) = result.verdict { return .dropped(reason) }
    return .arrived(.outside, result.frame)
  }
}
