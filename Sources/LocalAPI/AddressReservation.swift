import NetworkTypes

/// Who holds reserved addresses: one attachment. The addresses themselves are the names of the files it lies in.
public struct AddressReservation: Sendable, Hashable {
  public var network: String
  public var containerID: String
  public var interfaceName: String
  public var netnsPath: String
  public var netnsInode: UInt64
  public var bootID: String
  /// Which other plugin gave the addresses; nil: they are ours.
  public var ipamPlugin: String?
  /// Seconds since 1970.
  public var createdAt: Int64

  public init(
    network: String, containerID: String, interfaceName: String, netnsPath: String, netnsInode: UInt64,
    bootID: String, ipamPlugin: String? = nil, createdAt: Int64
  ) {
    self.network = network
    self.containerID = containerID
    self.interfaceName = interfaceName
    self.netnsPath = netnsPath
    self.netnsInode = netnsInode
    self.bootID = bootID
    self.ipamPlugin = ipamPlugin
    self.createdAt = createdAt
  }

  public var json: JSONValue {
    var object: JSONObject = [
      "network": .string(network), "containerID": .string(containerID), "interfaceName": .string(interfaceName),
      "netnsPath": .string(netnsPath), "netnsInode": .string(netnsInode.description), "bootID": .string(bootID),
    ]
    object["ipamPlugin"] = ipamPlugin.map(JSONValue.string)
    object["createdAt"] = .int(createdAt)
    return .object(object)
  }

  public init(json: JSONValue) throws(FieldError) {
    let reader = try FieldReader(json, "address reservation")
    network = try reader.string("network")
    containerID = try reader.string("containerID")
    interfaceName = try reader.string("interfaceName")
    netnsPath = try reader.string("netnsPath")
    netnsInode = try reader.value("netnsInode", "inode number") { $0.stringValue.flatMap { UInt64($0) } }
    bootID = try reader.string("bootID")
    ipamPlugin = try reader.optional("ipamPlugin", reader.string)
    createdAt = try reader.integer("createdAt")
  }
}

/// A set of ranges of one family, of which an attachment gets one address.
public struct AddressPool: Sendable, Hashable, CustomStringConvertible {
  public let family: IPFamily
  /// In the order they are used.
  public let ranges: [AddressRange]
  /// Addresses never handed out: gateways.
  public let excluded: Set<IPAddress>

  /// nil for no range, and where families differ.
  public init?(_ ranges: [AddressRange], excluding excluded: Set<IPAddress> = []) {
    guard let family = ranges.first?.first.family, ranges.allSatisfy({ $0.first.family == family }) else { return nil }
    self.family = family
    self.ranges = ranges
    self.excluded = excluded
  }

  /// The addresses of a prefix that a pod may have: not the first, which names the network (IPv6: all its routers), and
  /// not IPv4's last, the broadcast address. nil where none is left.
  public static func usableRange(of cidr: CIDR) -> AddressRange? {
    if cidr.prefixLength >= cidr.family.addressBits - 1 { return AddressRange(cidr) }
    let last = cidr.family == .v4 ? cidr.last.number - 1 : cidr.last.number
    guard let first = IPAddress(family: cidr.family, number: cidr.first.number + 1),
      let last = IPAddress(family: cidr.family, number: last)
    else { return nil }
    return AddressRange(first: first, last: last)
  }

  public func contains(_ address: IPAddress) -> Bool {
    !excluded.contains(address) && ranges.contains { $0.contains(address) }
  }

  /// How many addresses there are; an IPv6 range has more than an integer of 64 bits counts.
  public var count: UInt128 {
    let total = ranges.reduce(UInt128(0)) { sum, range in
      let size = (range.last.number - range.first.number).addingReportingOverflow(1)
      let next = size.overflow ? (UInt128.max, true) : sum.addingReportingOverflow(size.partialValue)
      return next.1 ? .max : next.0
    }
    return total - UInt128(excluded.filter { address in ranges.contains { $0.contains(address) } }.count)
  }

  /// The addresses in order.
  var addresses: some Sequence<IPAddress> {
    ranges.lazy.flatMap { range in
      sequence(first: range.first) { address in
        address < range.last ? IPAddress(family: range.first.family, number: address.number + 1) : nil
      }
    }.filter { !excluded.contains($0) }
  }

  public var description: String { ranges.map(\.description).joined(separator: ",") }
}

/// Why no addresses were reserved.
public enum AddressStoreError: Error, Hashable, CustomStringConvertible {
  case exhausted(pool: String)
  case taken(IPAddress, by: AddressReservation?)
  case outside(IPAddress)
  /// Two requested addresses fall into one pool.
  case requestedTwice(IPAddress)
  /// This attachment holds addresses already.
  case held
  case file(FileError)

  public var description: String {
    switch self {
    case .exhausted(let pool): "no free address in \(pool)"
    case .taken(let address, let owner):
      "address \(address) is taken" + (owner.map { " by \($0.containerID) \($0.interfaceName)" } ?? "")
    case .outside(let address): "address \(address) is in none of the network's ranges"
    case .requestedTwice(let address): "address \(address): another one of its pool is requested too"
    case .held: "the attachment holds addresses already"
    case .file(let error): error.description
    }
  }
}
