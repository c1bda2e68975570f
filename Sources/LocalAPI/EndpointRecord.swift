import NetworkTypes

/// One attachment of one pod sandbox, as the CNI plugin made it: the plugin's note to itself, to the agent and to
/// `dpctl`. A pod with two networks has two.
public struct EndpointRecord: Sendable, Hashable {
  /// The CNI network's name.
  public var network: String
  public var containerID: String
  /// In the pod: `eth0`.
  public var interfaceName: String
  /// On the node: the other end of the veth pair.
  public var hostInterface: String
  /// The pod's, not the host end's.
  public var mac: MACAddress
  public var addresses: [IPAddress]
  /// As the runtime gave it.
  public var netnsPath: String
  /// Tells a living namespace from a later one that got the same path.
  public var netnsInode: UInt64
  /// The kernel's number of the namespace, by which socket programs know it; nil before Linux 5.14.
  public var netnsCookie: UInt64?
  /// `/proc/sys/kernel/random/boot_id` at ADD: a record of an earlier boot describes nothing that still exists.
  public var bootID: String
  public var podNamespace: String?
  public var podName: String?
  public var podUID: String?
  /// Ports of the node that lead to it.
  public var portMappings: [PortMapping]
  /// Its device holds packets back, as the runtime asked (`bandwidth`).
  public var isShaped: Bool
  /// Seconds since 1970.
  public var createdAt: Int64

  public init(
    network: String, containerID: String, interfaceName: String, hostInterface: String, mac: MACAddress,
    addresses: [IPAddress], netnsPath: String, netnsInode: UInt64, netnsCookie: UInt64? = nil, bootID: String,
    podNamespace: String? = nil, podName: String? = nil, podUID: String? = nil, portMappings: [PortMapping] = [],
    isShaped: Bool = false, createdAt: Int64
  ) {
    self.network = network
    self.containerID = containerID
    self.interfaceName = interfaceName
    self.hostInterface = hostInterface
    self.mac = mac
    self.addresses = addresses
    self.netnsPath = netnsPath
    self.netnsInode = netnsInode
    self.netnsCookie = netnsCookie
    self.bootID = bootID
    self.podNamespace = podNamespace
    self.podName = podName
    self.podUID = podUID
    self.portMappings = portMappings
    self.isShaped = isShaped
    self.createdAt = createdAt
  }

  public var json: JSONValue {
    var object: JSONObject = [
      "network": .string(network), "containerID": .string(containerID), "interfaceName": .string(interfaceName),
      "hostInterface": .string(hostInterface), "mac": .string(mac.description),
      "addresses": .array(addresses.map { .string($0.description) }), "netnsPath": .string(netnsPath),
      // As text: JSON readers that hold numbers as doubles would round a large inode.
      "netnsInode": .string(netnsInode.description), "bootID": .string(bootID),
    ]
    object["netnsCookie"] = netnsCookie.map { .string($0.description) }
    object["podNamespace"] = podNamespace.map(JSONValue.string)
    object["podName"] = podName.map(JSONValue.string)
    object["podUID"] = podUID.map(JSONValue.string)
    if !portMappings.isEmpty { object["portMappings"] = .array(portMappings.map(\.json)) }
    if isShaped { object["shaped"] = true }
    object["createdAt"] = .int(createdAt)
    return .object(object)
  }

  /// Unknown members are ignored, so that an older reader survives a newer writer.
  public init(json: JSONValue) throws(FieldError) {
    let document = "endpoint record"
    let reader = try FieldReader(json, document)
    network = try reader.string("network")
    containerID = try reader.string("containerID")
    interfaceName = try reader.string("interfaceName")
    hostInterface = try reader.string("hostInterface")
    mac = try reader.value("mac", "MAC address") { $0.stringValue.flatMap { MACAddress($0) } }
    addresses = try reader.strings("addresses").map { text throws(FieldError) in
      guard let address = IPAddress(text) else { throw FieldError(document, "addresses", "'\(text)' is no IP address") }
      return address
    }
    netnsPath = try reader.string("netnsPath")
    netnsInode = try reader.value("netnsInode", "inode number") { $0.stringValue.flatMap { UInt64($0) } }
    netnsCookie = try reader.optional("netnsCookie") { name throws(FieldError) in
      try reader.value(name, "namespace cookie") { $0.stringValue.flatMap { UInt64($0) } }
    }
    bootID = try reader.string("bootID")
    podNamespace = try reader.optional("podNamespace", reader.string)
    podName = try reader.optional("podName", reader.string)
    podUID = try reader.optional("podUID", reader.string)
    let mappings = try reader.optional("portMappings") { name throws(FieldError) in
      try reader.value(name, "array") { $0.arrayValue }
    }
    portMappings = try (mappings ?? []).map { mapping throws(FieldError) in try PortMapping(json: mapping) }
    isShaped =
      try reader.optional("shaped") { name throws(FieldError) in try reader.value(name, "boolean") { $0.boolValue } }
      ?? false
    createdAt = try reader.integer("createdAt")
  }

  /// The name of this record's file: the same for every attempt to attach this interface, never too long, never a path.
  public var fileName: String {
    Self.fileName(network: network, containerID: containerID, interfaceName: interfaceName)
  }

  public static func fileName(network: String, containerID: String, interfaceName: String) -> String {
    StableHash.hex128("\(network)\0\(containerID)\0\(interfaceName)") + ".json"
  }
}

/// Names derived from identifiers of any length. The results are on disk and in the kernel: they never change.
public enum StableHash {
  /// FNV-1a over UTF-8 bytes, 128 bits, as 32 hex digits, mixed at the end so that any part of the digits tells inputs
  /// apart. Not collision resistant against an attacker; container ids come from the runtime.
  public static func hex128(_ text: String) -> String {
    let prime: UInt128 = 1 << 88 | 0x13b
    var hash: UInt128 = 0x6c62_272e_07bb_0142 << 64 | 0x62b8_2175_6295_c58d
    for byte in text.utf8 {
      hash ^= UInt128(byte)
      hash = hash &* prime
    }
    // The finalization of MurmurHash3 x64 128: FNV alone hardly changes its middle bits.
    var high = UInt64(truncatingIfNeeded: hash >> 64)
    var low = UInt64(truncatingIfNeeded: hash)
    high &+= low
    low &+= high
    (high, low) = (mixed(high), mixed(low))
    high &+= low
    low &+= high
    return hex(high) + hex(low)
  }

  private static func mixed(_ value: UInt64) -> UInt64 {
    var value = value
    value = (value ^ value >> 33) &* 0xff51_afd7_ed55_8ccd
    value = (value ^ value >> 33) &* 0xc4ce_b9fe_1a85_ec53
    return value ^ value >> 33
  }

  private static func hex(_ value: UInt64) -> String {
    let digits = String(value, radix: 16)
    return String(repeating: "0", count: 16 - digits.count) + digits
  }
}
