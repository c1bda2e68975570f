import NetworkTypes

/// A 32-bit register of the nftables virtual machine, 0...15.
struct Register: Sendable, Hashable, CustomStringConvertible {
  let index: UInt32
  init(_ index: Int) { self.index = UInt32(index) }
  /// As the kernel numbers them when it tells of rules: every fourth is one of the 128-bit registers 1...4.
  var kernelNumber: UInt32 { index % 4 == 0 ? 1 + index / 4 : 8 + index }
  var description: String { "r\(index)" }
}

enum PayloadBase: UInt32, Sendable {
  case link = 0
  case network = 1
  case transport = 2
}

/// `enum nft_meta_keys`, as far as we use it.
enum MetaKey: UInt32, Sendable {
  case mark = 3
  case inputInterface = 4
  case inputName = 6
  case outputName = 7
  case packetType = 19
  case l4Protocol = 16
}

/// `enum nft_ct_keys`, as far as we use it.
enum ConntrackKey: UInt32, Sendable {
  case state = 0
  case direction = 1
  case status = 2
  case mark = 3
  case protocolDestination = 12
  case destinationIPv4 = 20
  case destinationIPv6 = 22
}

enum Verdict: Sendable, Hashable, CustomStringConvertible {
  case accept, drop, `return`
  /// On with the rule in which the verdict was looked up.
  case `continue`
  case jump(String)
  case goto(String)

  var code: Int32 {
    switch self {
    case .accept: 1
    case .drop: 0
    case .continue: -1
    case .jump: -3
    case .goto: -4
    case .return: -5
    }
  }
  var chain: String? {
    switch self {
    case .jump(let chain), .goto(let chain): chain
    default: nil
    }
  }
  var description: String {
    switch self {
    case .accept: "accept"
    case .drop: "drop"
    case .return: "return"
    case .continue: "continue"
    case .jump(let chain): "jump \(chain)"
    case .goto(let chain): "goto \(chain)"
    }
  }
}

/// One instruction of a rule. Registers do not live on in the next rule.
enum Expression: Sendable, Hashable, CustomStringConvertible {
  case payload(PayloadBase, offset: UInt32, length: UInt32, to: Register)
  case meta(MetaKey, to: Register)
  case setMeta(MetaKey, from: Register)
  /// A value of the flow's original tuple.
  case conntrack(ConntrackKey, original: Bool, to: Register)
  case lookup(MapName, key: Register, to: Register?, inverted: Bool)
  case verdictLookup(MapName, key: Register)
  case immediate([UInt8], to: Register)
  case verdict(Verdict)
  case compare(Register, equal: Bool, [UInt8])
  /// `register &= mask`; host byte order.
  case and(Register, mask: UInt32)
  /// `register = register & mask ^ bits`; host byte order.
  case replaceBits(Register, mask: UInt32, bits: UInt32)
  /// A uniformly random number below `modulus`.
  case random(modulus: UInt32, to: Register)
  /// The hash of `length` bytes from a register on, scaled to below `modulus`: `JenkinsHash` over their words.
  case hash(Register, length: UInt32, modulus: UInt32, seed: UInt32, to: Register)
  case destinationNAT(IPFamily, address: Register, port: Register)
  case sourceNAT(IPFamily, address: Register)
  /// Source ports are chosen at random, as kube-proxy does: two flows must not race for one port.
  case masquerade
  case addElement(MapName, key: Register, data: Register, timeoutMilliseconds: UInt64)
  case updateElement(MapName, key: Register, data: Register, timeoutMilliseconds: UInt64)
  case deleteElement(MapName, key: Register, data: Register)
  case counter
  case setConntrackMark(from: Register)
  /// To whoever listens to our group of nfnetlink_log: the prefix says why, the packet's mark by which clause.
  case log(prefix: String)
  /// ICMP or ICMPv6 port unreachable.
  case reject(IPFamily)
  /// A TCP reset. An ICMPv6 error that arrives while connect(2) still holds its socket is lost (LockDroppedIcmps), and
  /// the client learns of it with its retransmission, a second later; ICMP errors are also limited per receiver.
  case resetTCP

  var description: String {
    switch self {
    case .payload(let base, let offset, let length, let to): "\(to) = \(base)[\(offset)+\(length)]"
    case .meta(let key, let to): "\(to) = meta \(key)"
    case .setMeta(let key, let from): "meta \(key) = \(from)"
    case .conntrack(let key, let original, let to): "\(to) = ct \(original ? "original " : "")\(key)"
    case .lookup(let map, let key, let to, let inverted):
      "\(to.map { "\($0) = " } ?? "")\(inverted ? "not " : "")@\(map.rawValue)[\(key)]"
    case .verdictLookup(let map, let key): "verdict @\(map.rawValue)[\(key)]"
    case .immediate(let bytes, let to): "\(to) = \(bytes)"
    case .verdict(let verdict): "\(verdict)"
    case .compare(let register, let equal, let bytes): "\(register) \(equal ? "==" : "!=") \(bytes)"
    case .and(let register, let mask): "\(register) &= 0x\(String(mask, radix: 16))"
    case .replaceBits(let register, let mask, let bits):
      "\(register) = \(register) & 0x\(String(mask, radix: 16)) ^ 0x\(String(bits, radix: 16))"
    case .random(let modulus, let to): "\(to) = random % \(modulus)"
    case .hash(let from, let length, let modulus, let seed, let to):
      "\(to) = jhash \(from)+\(length) % \(modulus) seed 0x\(String(seed, radix: 16))"
    case .destinationNAT(_, let address, let port): "dnat to \(address):\(port)"
    case .sourceNAT(_, let address): "snat to \(address)"
    case .masquerade: "masquerade"
    case .addElement(let map, let key, let data, let timeout): "add @\(map.rawValue)[\(key)] = \(data) for \(timeout)ms"
    case .updateElement(let map, let key, let data, let timeout):
      "update @\(map.rawValue)[\(key)] = \(data) for \(timeout)ms"
    case .deleteElement(let map, let key, _): "delete @\(map.rawValue)[\(key)]"
    case .counter: "counter"
    case .setConntrackMark(let from): "ct mark = \(from)"
    case .log(let prefix): "log \(prefix)"
    case .reject: "reject"
    case .resetTCP: "reject with tcp reset"
    }
  }
}

/// A rule as it should be. The comment is for whoever reads `nft list ruleset`.
struct RuleSpec: Sendable, Hashable, CustomStringConvertible {
  var comment: String
  var expressions: [Expression]
  var description: String { expressions.map(\.description).joined(separator: "; ") + "  # \(comment)" }
}

struct HookSpec: Sendable, Hashable {
  enum Kind: String, Sendable { case nat, filter }
  var kind: Kind
  /// `NF_INET_*`.
  var hook: UInt32
  var priority: Int32
}

struct ChainSpec: Sendable, Hashable {
  var name: String
  var hook: HookSpec?
  var rules: [RuleSpec]
}
