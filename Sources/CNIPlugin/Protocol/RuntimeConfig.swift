import LocalAPI
import Netlink
import NetworkTypes

/// What the runtime adds to the configuration for one attachment. Keys are matched without regard to case: containerd
/// sends the names of Go fields.
struct RuntimeConfig {
  private let json: JSONObject
  private let prefix: String

  init(_ json: JSONObject, prefix: String = "runtimeConfig.") {
    self.json = json
    self.prefix = prefix
  }

  private func value<Value>(
    _ key: String, _ kind: String, _ convert: (JSONValue) -> Value?
  ) throws(CNIError) -> Value? {
    guard let json = json.valueIgnoringCase(key), !json.isNull else { return nil }
    guard let value = convert(json) else { throw .config(prefix + key, "is no \(kind)") }
    return value
  }

  func array(_ key: String) throws(CNIError) -> [JSONValue]? { try value(key, "array") { $0.arrayValue } }
  func object(_ key: String) throws(CNIError) -> JSONObject? { try value(key, "object") { $0.objectValue } }

  func bandwidth() throws(CNIError) -> BandwidthLimit? {
    guard let limits = try object("bandwidth") else { return nil }
    func bits(_ key: String) throws(CNIError) -> UInt64 {
      guard let number = limits.valueIgnoringCase(key), !number.isNull else { return 0 }
      guard let bits = number.intValue.flatMap({ UInt64(exactly: $0) }) else {
        throw .config("\(prefix)bandwidth.\(key)", "\(number.serialized()) is no number of bits")
      }
      return bits
    }
    func bucket(_ direction: String) throws(CNIError) -> TokenBucket? {
      let (rate, burst) = (try bits("\(direction)Rate"), try bits("\(direction)Burst"))
      guard rate > 0 || burst > 0 else { return nil }
      for (key, bits, most) in [("Rate", rate, UInt64.max), ("Burst", burst, UInt64(UInt32.max) * 8)] {
        guard (8...most).contains(bits) else {
          throw .config("\(prefix)bandwidth.\(direction)\(key)", "\(bits) bits; rate and burst belong together")
        }
      }
      return TokenBucket(rate: rate / 8, burst: UInt32(clamping: burst / 8), latencyMilliseconds: 25)
    }
    let limit = BandwidthLimit(ingress: try bucket("ingress"), egress: try bucket("egress"))
    return limit.ingress == nil && limit.egress == nil ? nil : limit
  }

  func portMappings() throws(CNIError) -> [PortMapping] {
    var mappings: [PortMapping] = []
    for (index, element) in (try array("portMappings") ?? []).enumerated() {
      let field = "\(prefix)portMappings[\(index)]"
      guard let object = element.objectValue else { throw .config(field, "is no object") }
      func port(_ key: String) throws(CNIError) -> Port {
        let number = object.valueIgnoringCase(key)
        guard let port = number?.intValue.flatMap({ Port($0) }) else {
          throw .config("\(field).\(key)", "\(number?.serialized() ?? "") is no port")
        }
        return port
      }
      let name = object.valueIgnoringCase("protocol")?.stringValue ?? ""
      guard let proto = name.isEmpty ? .tcp : L4Protocol(kubernetesName: name.uppercased()) else {
        throw .config("\(field).protocol", "'\(name)' is none of tcp, udp, sctp")
      }
      let mapping = PortMapping(
        proto, hostPort: try port("hostPort"), containerPort: try port("containerPort"),
        hostIP: try hostIP(object, "\(field).hostIP"))
      // Runtimes repeat what several containers of a pod ask for.
      if mappings.contains(mapping) { continue }
      if let other = mappings.first(where: mapping.overlaps) {
        throw .config(field, "\(mapping) is asked for twice, the other time as \(other)")
      }
      mappings.append(mapping)
    }
    return mappings
  }

  private func hostIP(_ mapping: JSONObject, _ field: String) throws(CNIError) -> IPAddress? {
    guard let text = mapping.valueIgnoringCase("hostIP")?.stringValue, !text.isEmpty else { return nil }
    guard let address = IPAddress(text) else { throw .config(field, "'\(text)' is no IP address") }
    guard !address.isLoopback else {
      throw .unsupported(field, "'\(text)'", "the node's own processes reach the pod at its address")
    }
    return address
  }

  func mac() throws(CNIError) -> MACAddress? {
    guard let text = try value("mac", "string", { $0.stringValue }), !text.isEmpty else { return nil }
    // The lowest bit of the first byte marks groups: no interface can have such an address.
    guard let mac = MACAddress(text), mac.bytes[0] & 1 == 0, mac.number != 0 else {
      throw .config("\(prefix)mac", "'\(text)' is no MAC address of an interface")
    }
    return mac
  }

  /// Static addresses, with or without prefix length.
  func addresses() throws(CNIError) -> [IPAddress] {
    var addresses: [IPAddress] = []
    for element in try array("ips") ?? [] {
      let text = element.stringValue ?? ""
      let host = text.split(separator: "/", maxSplits: 1, omittingEmptySubsequences: false)[0]
      guard let address = IPAddress(host), host.utf8.count == text.utf8.count || CIDR(text) != nil else {
        throw .config("\(prefix)ips", "'\(element)' is no IP address")
      }
      addresses.append(address)
    }
    return addresses
  }
}
