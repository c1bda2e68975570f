import CLinux
import NetworkTypes

/// A table of nf_tables: its family and name.
public struct FilterTable: Sendable, Hashable, CustomStringConvertible {
  public enum Family: UInt8, Sendable, CustomStringConvertible {
    case ipv4 = 2
    case netdev = 5
    case ipv6 = 10

    /// As `nft` has it.
    public var description: String {
      switch self {
      case .ipv4: "ip"
      case .netdev: "netdev"
      case .ipv6: "ip6"
      }
    }
  }

  public let family: Family
  public let name: String

  public init(_ family: Family, _ name: String) { (self.family, self.name) = (family, name) }

  public var description: String { "\(family) \(name)" }
}

/// Where the packets of a chain come from.
public struct FilterHook: Sendable, Hashable {
  public enum Kind: String, Sendable {
    case filter, nat
  }

  public var kind: Kind
  /// Of linux/netfilter.h, which goes with no C library's headers: `NF_INET_POST_ROUTING`.
  public static let postRouting: UInt32 = 4
  /// `NF_INET_PRE_ROUTING` and `NF_INET_LOCAL_OUT`.
  public static let preRouting: UInt32 = 0
  public static let localOutput: UInt32 = 3
  /// `NF_NETDEV_INGRESS`.
  public static let deviceIngress: UInt32 = 0

  /// Of the family's hooks.
  public var number: UInt32
  public var priority: Int32
  /// Only what comes in by it; the netdev family needs one.
  public var device: String?

  public init(_ kind: Kind, number: some BinaryInteger, priority: Int32, device: String? = nil) {
    (self.kind, self.number, self.priority, self.device) = (kind, UInt32(truncatingIfNeeded: number), priority, device)
  }
}

/// One step of a rule; a comparison that does not hold ends the rule.
public enum FilterExpression: Sendable, Hashable {
  public enum Header: UInt32, Sendable {
    case link, network, transport
  }

  public enum Comparison: UInt32, Sendable {
    case equal, unequal, less, atMost, more, atLeast
  }

  public enum Verdict: UInt32, Sendable {
    case drop, accept
  }

  /// Bytes of a header against others, at most 16.
  case payload(Header, offset: UInt32, Comparison, [UInt8])
  /// Those bits of a header's bytes that `mask` has, against others; at most 16 bytes.
  case masked(Header, offset: UInt32, mask: [UInt8], Comparison, [UInt8])
  /// The protocol above IP, extension headers passed over.
  case transport(UInt8)
  /// Counts what gets this far.
  case counter
  case verdict(Verdict)
  /// Gives the packet's flow the address of the device it leaves by.
  case masquerade
  /// Whether the destination is one of this machine's addresses.
  case toThisMachine
  /// Gives the packet's flow another destination.
  case destination(IPAddress, port: UInt16)
}

extension NetlinkMessageBuilder {
  /// As an element of a rule's list.
  mutating func append(_ expression: FilterExpression) {
    switch expression {
    case .payload(let header, let offset, let comparison, let bytes):
      load(header, offset: offset, length: bytes.count)
      compare(comparison, bytes)
    case .masked(let header, let offset, let mask, let comparison, let bytes):
      load(header, offset: offset, length: bytes.count)
      element("bitwise") {
        for register in [NFTA_BITWISE_SREG, NFTA_BITWISE_DREG] {
          $0.attribute(register.rawValue, bigEndian: NFT_REG32_00.rawValue)
        }
        $0.attribute(NFTA_BITWISE_LEN.rawValue, bigEndian: UInt32(bytes.count))
        $0.nest(NFTA_BITWISE_MASK.rawValue) { $0.attribute(NFTA_DATA_VALUE.rawValue, mask) }
        let nothing = [UInt8](repeating: 0, count: bytes.count)
        $0.nest(NFTA_BITWISE_XOR.rawValue) { $0.attribute(NFTA_DATA_VALUE.rawValue, nothing) }
      }
      compare(comparison, bytes)
    case .transport(let number):
      element("meta") {
        $0.attribute(NFTA_META_DREG.rawValue, bigEndian: NFT_REG32_00.rawValue)
        $0.attribute(NFTA_META_KEY.rawValue, bigEndian: NFT_META_L4PROTO.rawValue)
      }
      compare(.equal, [number])
    case .counter:
      element("counter") { _ in }
    case .masquerade:
      element("masq") { _ in }
    case .toThisMachine:
      element("fib") {
        $0.attribute(NFTA_FIB_DREG.rawValue, bigEndian: NFT_REG32_00.rawValue)
        $0.attribute(NFTA_FIB_RESULT.rawValue, bigEndian: NFT_FIB_RESULT_ADDRTYPE.rawValue)
        $0.attribute(NFTA_FIB_FLAGS.rawValue, bigEndian: NFTA_FIB_F_DADDR.rawValue)
      }
      // A number of the machine's own order.
      compare(.equal, withUnsafeBytes(of: UInt32(RTN_LOCAL)) { Array($0) })
    case .destination(let address, let port):
      immediate(address.bytes, to: NFT_REG32_00.rawValue)
      immediate([UInt8(port >> 8), UInt8(truncatingIfNeeded: port)], to: NFT_REG32_04.rawValue)
      element("nat") {
        $0.attribute(NFTA_NAT_TYPE.rawValue, bigEndian: NFT_NAT_DNAT.rawValue)
        $0.attribute(NFTA_NAT_FAMILY.rawValue, bigEndian: UInt32(address.family.linuxFamily))
        $0.attribute(NFTA_NAT_REG_ADDR_MIN.rawValue, bigEndian: NFT_REG32_00.rawValue)
        $0.attribute(NFTA_NAT_REG_PROTO_MIN.rawValue, bigEndian: NFT_REG32_04.rawValue)
      }
    case .verdict(let verdict):
      element("immediate") {
        $0.attribute(NFTA_IMMEDIATE_DREG.rawValue, bigEndian: NFT_REG_VERDICT.rawValue)
        $0.nest(NFTA_IMMEDIATE_DATA.rawValue) {
          $0.nest(NFTA_DATA_VERDICT.rawValue) { $0.attribute(NFTA_VERDICT_CODE.rawValue, bigEndian: verdict.rawValue) }
        }
      }
    }
  }

  private mutating func immediate(_ bytes: [UInt8], to register: UInt32) {
    element("immediate") {
      $0.attribute(NFTA_IMMEDIATE_DREG.rawValue, bigEndian: register)
      $0.nest(NFTA_IMMEDIATE_DATA.rawValue) { $0.attribute(NFTA_DATA_VALUE.rawValue, bytes) }
    }
  }

  private mutating func load(_ header: FilterExpression.Header, offset: UInt32, length: Int) {
    element("payload") {
      $0.attribute(NFTA_PAYLOAD_DREG.rawValue, bigEndian: NFT_REG32_00.rawValue)
      $0.attribute(NFTA_PAYLOAD_BASE.rawValue, bigEndian: header.rawValue)
      $0.attribute(NFTA_PAYLOAD_OFFSET.rawValue, bigEndian: offset)
      $0.attribute(NFTA_PAYLOAD_LEN.rawValue, bigEndian: UInt32(length))
    }
  }

  private mutating func compare(_ comparison: FilterExpression.Comparison, _ bytes: [UInt8]) {
    element("cmp") {
      $0.attribute(NFTA_CMP_SREG.rawValue, bigEndian: NFT_REG32_00.rawValue)
      $0.attribute(NFTA_CMP_OP.rawValue, bigEndian: comparison.rawValue)
      $0.nest(NFTA_CMP_DATA.rawValue) { $0.attribute(NFTA_DATA_VALUE.rawValue, bytes) }
    }
  }

  private mutating func element(_ name: String, _ data: (inout NetlinkMessageBuilder) -> Void) {
    nest(NFTA_LIST_ELEM.rawValue) {
      $0.attribute(NFTA_EXPR_NAME.rawValue, string: name)
      $0.nest(NFTA_EXPR_DATA.rawValue, data)
    }
  }
}
