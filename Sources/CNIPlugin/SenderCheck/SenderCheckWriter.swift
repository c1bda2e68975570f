import Netlink
import NetworkTypes

/// Writes a `SenderCheck` as a program. Offsets are from the Ethernet header's beginning.
struct SenderCheckWriter {
  private(set) var program = ClassicProgram()
  private let check: SenderCheck
  private let pass: ClassicProgram.Label
  private let drop: ClassicProgram.Label

  init(_ check: SenderCheck) {
    self.check = check
    pass = program.label()
    drop = program.label()
  }

  mutating func write() {
    let (arp, ipv4, ipv6) = (program.label(), program.label(), program.label())
    program.loadIsTagged()
    program.ifNotEqual(0, goto: drop)
    requireLength(14)
    program.load(.half, 12)
    program.ifEqual(0x0800, goto: ipv4)
    program.ifEqual(0x86dd, goto: ipv6)
    program.ifEqual(0x0806, goto: arp)
    program.goto(drop)
    program.place(ipv4)
    writeIPv4()
    program.place(ipv6)
    writeIPv6()
    program.place(arp)
    writeARP()
    program.place(pass)
    program.end(.pass)
    program.place(drop)
    program.end(.drop)
  }

  // MARK: Protocols

  private mutating func writeIPv4() {
    if check.leavesPacketsToAgent { return program.goto(pass) }
    requireLength(34)
    requireOwnMAC(at: 6)
    passIfOwn(check.ownIPv4, at: 26)
    program.goto(drop)
  }

  private mutating func writeARP() {
    requireLength(42)
    requireOwnMAC(at: 6)
    // Ethernet and IPv4.
    require(.word, 14, 0x0001_0800)
    require(.half, 18, 0x0604)
    requireOwnMAC(at: 22)
    passIfOwn(check.ownIPv4, at: 28)
    // Who asks whether an address is free, claims it when nobody has answered: only its own.
    require(.word, 28, 0)
    passIfOwn(check.ownIPv4, at: 38)
    program.goto(drop)
  }

  private enum At {
    static let payloadLength = 18
    static let nextHeader = 20
    static let hopLimit = 21
    static let source = 22
    static let payload = 54
  }

  private mutating func writeIPv6() {
    let (source, plain) = (program.label(), program.label())
    requireLength(At.payload)
    program.load(.byte, At.nextHeader)
    program.ifNotEqual(ICMPv6.number, goto: plain)
    writeDiscovery(then: source)
    program.place(plain)
    // Neighbour discovery behind other headers, which no system sends, would not be looked at. It is known by its hop limit:
    // nobody takes another.
    program.load(.byte, At.hopLimit)
    program.ifNotEqual(255, goto: source)
    program.load(.byte, At.nextHeader)
    for header in Self.extensionHeaders { program.ifEqual(header, goto: drop) }
    program.place(source)
    writeSource()
  }

  /// Hop-by-hop, routing, authentication, destination, mobility, host identity, shim.
  private static let extensionHeaders: [UInt32] = [0, 43, 51, 60, 135, 139, 140]

  private mutating func writeDiscovery(then source: ClassicProgram.Label) {
    let (router, solicitation, advertisement) = (program.label(), program.label(), program.label())
    requireLength(At.payload + 4)
    program.load(.byte, At.payload)
    program.ifLess(ICMPv6.routerSolicitation, goto: source)
    program.ifMore(ICMPv6.redirect, goto: source)
    requireOwnMAC(at: 6)
    program.load(.byte, At.payload)
    program.ifEqual(ICMPv6.routerSolicitation, goto: router)
    program.ifEqual(ICMPv6.neighbourSolicitation, goto: solicitation)
    program.ifEqual(ICMPv6.neighbourAdvertisement, goto: advertisement)
    // Router advertisements and redirects are no pod's. The agent names them.
    program.goto(check.leavesPacketsToAgent ? pass : drop)

    program.place(router)
    writeOption(behind: 8, types: [ICMPv6.sourceOption], then: source)

    program.place(solicitation)
    let (sought, named) = (program.label(), program.label())
    // Without a source it claims the address, unless somebody says that it is taken.
    ifAddress(.unspecified(.v6), at: At.source, goto: sought)
    program.goto(named)
    program.place(sought)
    requireTarget(then: named)
    program.place(named)
    writeOption(behind: 24, types: [ICMPv6.sourceOption, ICMPv6.nonceOption], then: source)

    program.place(advertisement)
    let claimed = program.label()
    requireTarget(then: claimed)
    program.place(claimed)
    writeOption(behind: 24, types: [ICMPv6.targetOption], then: source)
  }

  private mutating func requireTarget(then next: ClassicProgram.Label) {
    requireLength(At.payload + 24)
    for address in check.ownIPv6 { ifAddress(address, at: At.payload + 8, goto: next) }
    program.goto(drop)
  }

  /// A message has at most one option, of eight bytes, and that names our own hardware address.
  private mutating func writeOption(behind length: Int, types: [UInt32], then next: ClassicProgram.Label) {
    let option = program.label()
    requireLength(At.payload + length)
    program.load(.half, At.payloadLength)
    program.ifEqual(UInt32(length), goto: next)
    program.ifEqual(UInt32(length + 8), goto: option)
    program.goto(drop)
    program.place(option)
    let address = program.label()
    requireLength(At.payload + length + 8)
    program.load(.half, At.payload + length)
    for type in types {
      // Who looks for a duplicate of its own address sends a number instead.
      program.ifEqual(type << 8 | 1, goto: type == ICMPv6.nonceOption ? next : address)
    }
    program.goto(drop)
    program.place(address)
    requireOwnMAC(at: At.payload + length + 2)
    program.goto(next)
  }

  private mutating func writeSource() {
    if check.leavesPacketsToAgent { return program.goto(pass) }
    requireOwnMAC(at: 6)
    for address in check.ownIPv6 { ifAddress(address, at: At.source, goto: pass) }
    let (nobody, routerAlert) = (program.label(), program.label())
    ifAddress(.unspecified(.v6), at: At.source, goto: nobody)
    program.goto(drop)
    // Before a pod has an address it looks for duplicates of it, and joins groups.
    program.place(nobody)
    program.load(.byte, At.nextHeader)
    program.ifEqual(0, goto: routerAlert)
    require(.byte, At.nextHeader, ICMPv6.number)
    program.load(.byte, At.payload)
    for type in [ICMPv6.neighbourSolicitation] + ICMPv6.listenerReports { program.ifEqual(type, goto: pass) }
    program.goto(drop)
    program.place(routerAlert)
    requireLength(At.payload + 12)
    require(.half, At.payload, ICMPv6.number << 8)
    program.load(.byte, At.payload + 8)
    for type in ICMPv6.listenerReports { program.ifEqual(type, goto: pass) }
    program.goto(drop)
  }

  // MARK: Pieces

  private mutating func requireLength(_ bytes: Int) {
    program.loadLength()
    program.ifLess(UInt32(bytes), goto: drop)
  }

  private mutating func require(_ width: ClassicProgram.Width, _ offset: Int, _ number: UInt32) {
    program.load(width, offset)
    program.ifNotEqual(number, goto: drop)
  }

  private mutating func requireOwnMAC(at offset: Int) {
    let bytes = check.mac.bytes.map { UInt32($0) }
    require(.word, offset, bytes[0] << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3])
    require(.half, offset + 4, bytes[4] << 8 | bytes[5])
  }

  private mutating func passIfOwn(_ addresses: [IPAddress], at offset: Int) {
    for address in addresses { ifAddress(address, at: offset, goto: pass) }
  }

  private mutating func ifAddress(_ address: IPAddress, at offset: Int, goto label: ClassicProgram.Label) {
    let other = program.label()
    let words = stride(from: 0, to: address.bytes.count, by: 4).map { start in
      address.bytes[start..<start + 4].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
    }
    for (index, word) in words.enumerated() {
      program.load(.word, offset + index * 4)
      program.ifNotEqual(word, goto: other)
    }
    program.goto(label)
    program.place(other)
  }
}

private enum ICMPv6 {
  static let number: UInt32 = 58
  static let routerSolicitation: UInt32 = 133
  static let neighbourSolicitation: UInt32 = 135
  static let neighbourAdvertisement: UInt32 = 136
  static let redirect: UInt32 = 137
  /// Of multicast listeners, versions 1 and 2, and that one has left.
  static let listenerReports: [UInt32] = [131, 132, 143]

  static let sourceOption: UInt32 = 1
  static let targetOption: UInt32 = 2
  static let nonceOption: UInt32 = 14
}
