import NetworkTypes

/// One thing that a key or a value says, by name.
public struct Field: Sendable, Hashable, CustomStringConvertible {
  public enum Value: Sendable, Hashable, CustomStringConvertible {
    case number(UInt64)
    case text(String)
    case address(IPAddress)
    case prefix(CIDR)
    case list([String])
    case flag(Bool)

    public var description: String {
      switch self {
      case .number(let number): "\(number)"
      case .text(let text): text
      case .address(let address): "\(address)"
      case .prefix(let prefix): "\(prefix)"
      case .list(let words): words.isEmpty ? "none" : words.joined(separator: ",")
      case .flag(let isSet): isSet ? "yes" : "no"
      }
    }
  }

  public var name: String
  public var value: Value

  public init(_ name: String, _ value: Value) { (self.name, self.value) = (name, value) }
  init(_ name: String, _ number: some BinaryInteger) { self.init(name, .number(UInt64(number))) }
  init(_ name: String, _ text: String) { self.init(name, .text(text)) }
  init(_ name: String, _ address: AddressLayout) {
    self.init(name, address.address.map { .address($0) } ?? .text("none"))
  }
  /// - Parameter port: big-endian.
  init(_ name: String, port: UInt16) { self.init(name, UInt16(bigEndian: port)) }
  init(_ name: String, proto: UInt8) { self.init(name, .text(protocolName(proto))) }
  /// `names` of the bits that are set, from the lowest on; what has no name by its number.
  init(_ name: String, flags: UInt32, _ names: [String]) {
    let set = (0..<32).filter { flags & 1 << UInt32($0) != 0 }
    self.init(name, .list(set.map { $0 < names.count ? names[$0] : "bit-\($0)" }))
  }
  /// A number that stands for a name of a list; what has none as the number.
  init(_ name: String, _ number: some BinaryInteger, of names: [String]) {
    self.init(name, Int(number) < names.count ? names[Int(number)] : "\(number)")
  }

  public var description: String { "\(name)=\(value)" }
}

/// IANA's short name, or the number.
public func protocolName(_ proto: UInt8) -> String {
  switch proto {
  case 1: "icmp"
  case 58: "icmpv6"
  default: L4Protocol(rawValue: proto)?.description ?? "\(proto)"
  }
}

extension [Field] {
  public var text: String { map(\.description).joined(separator: " ") }
}

/// A layout that can say in words what it holds.
public protocol LegibleLayout: MapLayout, CustomStringConvertible {
  var fields: [Field] { get }
}

extension LegibleLayout {
  public var description: String { fields.text }
}
