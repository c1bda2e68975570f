import CLibBPF
import DataplaneModel
import Glibc
import Netlink
import NetworkTypes
import Testing

@testable import BPFLoader
@testable import Lab

/// The packet programs with tables in their maps, and devices of this namespace: packets run through the compiled
/// programs one by one (BPF_PROG_TEST_RUN), and everything they decide is seen.
///
/// To be used on a thread inside its network namespace.
final class PacketRunner {
  var engine: PacketEngine
  private let reader: EventReader
  private let routes: RouteSocket
  private var devices: [String: UInt32] = [:]
  private var macs: [String: MACAddress] = [:]
  private(set) var tables = Tables()

  static let podMAC = MACAddress("02:00:00:00:00:01").unsafelyUnwrapped
  static let uplink = "eth0"

  enum Verdict: Hashable {
    /// To the node's own stack, or out.
    case passed
    case dropped(UInt8)
    /// Straight into a pod, or back to the sender.
    case redirected
  }

  struct Result {
    var verdict: Verdict
    /// The frame, as the program left it.
    var frame: [UInt8]
    var events: [EventLayout]
  }

  /// - Parameter pins: a folder of its own.
  init(
    _ tables: Tables, pins: PinFolder, masquerade: Uplink = Uplink(), keepsEstablished: Bool = false
  ) throws {
    self.tables = tables
    routes = try RouteSocket()
    let sockets = try SocketBalancer(
      pins: pins, cgroup: try Surroundings.cgroup, hostCookie: 1, servesPods: false, isAlone: false)
    engine = try PacketEngine(
      pins: pins, sockets: sockets, uplinks: [Self.uplink: masquerade], keepsEstablished: keepsEstablished)
    reader = try EventReader(engine.endpoint)
    try makeDevice(Self.uplink)
    for name in tables.node.endpoints.keys { try makeDevice(name) }
    _ = try engine.resync(tables)
    try engine.listen(to: Set(PacketEvent.Kind.allCases).subtracting([.trace]))
  }

  func apply(_ delta: TableDelta) throws {
    for (name, change) in delta.endpoints where change.new != nil { try makeDevice(name) }
    tables.apply(delta)
    _ = try engine.apply(delta, tables: tables)
    for (name, change) in delta.endpoints where change.new == nil {
      try routes.deleteLink(named: name)
      devices[name] = nil
    }
  }

  private func makeDevice(_ name: String) throws {
    guard devices[name] == nil else { return }
    try routes.createVethPair(name: name, peer: VethPeer(name: "peer\(devices.count)-\(UInt16.random(in: 0 ... .max))"))
    guard let link = try routes.link(named: name) else { return }
    devices[name] = UInt32(link.index)
    macs[name] = link.mac
  }

  // MARK: Frames

  func device(_ name: String) -> UInt32 { devices[name] ?? 0 }

  /// - Parameters:
  ///   - packet: from the IP header on.
  ///   - from: the hardware address that the frame names as its sender's.
  static func frame(_ packet: [UInt8], from mac: MACAddress = podMAC) -> [UInt8] {
    let type: [UInt8] = packet.first.map { $0 >> 4 } == 4 ? [0x08, 0x00] : [0x86, 0xdd]
    return [2, 0, 0, 0, 0, 0xfe] + mac.bytes + type + packet
  }

  /// Whether this kernel runs a program as for a packet that arrived by another device: 5.10 does not. Packets from outside
  /// are then seen in labs only.
  static let canForward: Bool = {
    let instructions = [
      bpf_insn(code: 0xb7, dst_reg: 0, src_reg: 0, off: 0, imm: 0),  // r0 = 0
      bpf_insn(code: 0x95, dst_reg: 0, src_reg: 0, off: 0, imm: 0),  // exit
    ]
    let program = bpf_prog_load(BPF_PROG_TYPE_SCHED_CLS, "forward", "GPL", instructions, instructions.count, nil)
    defer { close(program) }
    var context = __sk_buff()
    (context.ifindex, context.ingress_ifindex) = (1, 1)
    let bytes = frame([0x45] + [UInt8](repeating: 0, count: 63))
    var options = bpf_test_run_opts()
    options.sz = MemoryLayout<bpf_test_run_opts>.size
    return bytes.withUnsafeBytes { frame in
      withUnsafeBytes(of: &context) { context in
        options.data_in = frame.baseAddress
        options.data_size_in = UInt32(frame.count)
        options.ctx_in = context.baseAddress
        options.ctx_size_in = UInt32(context.count)
        return bpf_prog_test_run_opts(program, &options) == 0
      }
    }
  }()
  struct ForwardsNothing: Error {}
  static let forwardsNothing: Comment = "this kernel runs no program as for a packet that arrived by another device"

  enum Program: String {
    case fromPod = "from_pod"
    case toPod = "to_pod"
    case fromWire = "from_wire"
    case toWire = "to_wire"
  }

  /// - Parameters:
  ///   - device: at which the program runs.
  ///   - arrivedBy: a device for packets that are forwarded; nil: generated on this node.
  ///   - isForOthers: as a switch floods frames.
  func run(
    _ program: Program, at device: String, arrivedBy: String? = nil, isForOthers: Bool = false, _ frame: [UInt8]
  ) throws -> Result {
    var input = frame
    // To the device's own address; to others, frames are not this node's business.
    if !isForOthers, let mac = macs[device] { input.replaceSubrange(0..<6, with: mac.bytes) }
    let (action, output) = try run(program, device, arrivedBy: arrivedBy, input, times: 1)
    let events = try reader.take()
    let verdict: Verdict =
      switch action {
      case 7: .redirected
      case 2: .dropped(events.last { $0.kind == 0 }?.reason ?? 0)
      default: .passed
      }
    return Result(verdict: verdict, frame: output, events: events)
  }

  /// - Returns: what the program answered, a TC_ACT_ number, and the frame as it left it. Events are not taken.
  @discardableResult
  func run(
    _ program: Program, _ device: String, arrivedBy: String? = nil, _ frame: [UInt8], times: Int
  ) throws -> (action: CInt, frame: [UInt8]) {
    if arrivedBy != nil, !Self.canForward { throw ForwardsNothing() }
    let object = program == .fromPod || program == .toPod ? engine.endpoint : engine.uplink
    var context = __sk_buff()
    context.ifindex = devices[device] ?? 0
    context.ingress_ifindex = arrivedBy.flatMap { devices[$0] } ?? 0
    var (input, output) = (frame, [UInt8](repeating: 0, count: frame.count + 256))
    var options = bpf_test_run_opts()
    options.sz = MemoryLayout<bpf_test_run_opts>.size
    options.`repeat` = CInt(times)
    let descriptor = try object.descriptor(ofProgram: program.rawValue)
    let result = input.withUnsafeMutableBytes { input in
      output.withUnsafeMutableBytes { output in
        withUnsafeMutableBytes(of: &context) { context in
          options.data_in = UnsafeRawPointer(input.baseAddress)
          options.data_size_in = UInt32(input.count)
          options.data_out = output.baseAddress
          options.data_size_out = UInt32(output.count)
          options.ctx_in = UnsafeRawPointer(context.baseAddress)
          options.ctx_size_in = UInt32(context.count)
          return bpf_prog_test_run_opts(descriptor, &options)
        }
      }
    }
    try check("run", program.rawValue) { result }
    return (CInt(bitPattern: options.retval), Array(output.prefix(Int(options.data_size_out))))
  }

  /// Events that are there, and how many found no room since the programs were loaded.
  func events() throws -> (told: [EventLayout], lost: UInt64) { (try reader.take(), try reader.lostEvents) }

  // MARK: Flows

  /// The only flow there is; nil where there is none, or more.
  func onlyFlow() throws -> (flow: FlowLayout, isAttempt: Bool)? {
    let (flows, attempts) = (
      try engine.maps.tracking.flows.elements().values, try engine.maps.tracking.attempts.elements().values
    )
    guard flows.count + attempts.count == 1, let flow = flows.first ?? attempts.first else { return nil }
    return (flow, flows.isEmpty)
  }

  /// As if no packet had come for so long. The kernel's clock may be younger than that: times wrap around.
  func age(seconds: UInt64) throws {
    for map in [true, false] {
      for (key, flow) in try map ? engine.maps.tracking.flows.elements() : engine.maps.tracking.attempts.elements() {
        var old = flow
        old.seen &-= seconds * 1_000_000_000
        if map { try engine.maps.tracking.flows.set(key, old) } else { try engine.maps.tracking.attempts.set(key, old) }
      }
    }
  }

  /// As if time had passed: no flow and no translation is left.
  func forgetFlows() throws {
    for key in try engine.maps.tracking.flows.elements().keys { try engine.maps.tracking.flows.remove(key) }
    for key in try engine.maps.tracking.attempts.elements().keys { try engine.maps.tracking.attempts.remove(key) }
    for key in try engine.maps.tracking.translations.elements().keys {
      try engine.maps.tracking.translations.remove(key)
    }
  }
}
