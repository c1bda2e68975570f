import NetworkTypes

/// Where the agent, the plugin and `dpctl` meet, when nothing else is configured.
public enum LocalAPIDefaults {
  public static let agentSocket = "/run/sluice/agent.sock"
  public static let nodeFactsFile = "/run/sluice/node.json"
  public static let endpointDirectory = "/run/sluice/endpoints"
  public static let runDirectory = "/run/sluice"
  public static let stateDirectory = "/var/lib/sluice"
}

/// What the plugin must know of its node: written by the agent, read at every ADD that has no ranges of its own.
public struct NodeFacts: Sendable, Hashable {
  public var node: String
  /// The pod ranges of this node, at most one of each family in a dual-stack cluster.
  public var podCIDRs: [CIDR]
  /// Bytes; what a pod's packet may measure without fragmentation between nodes.
  public var mtu: Int?

  public init(node: String, podCIDRs: [CIDR], mtu: Int?) {
    self.node = node
    self.podCIDRs = podCIDRs
    self.mtu = mtu
  }

  public var json: JSONValue {
    var object: JSONObject = ["node": .string(node), "podCIDRs": .array(podCIDRs.map { .string($0.description) })]
    object["mtu"] = mtu.map { .int(Int64($0)) }
    return .object(object)
  }

  public init(json: JSONValue) throws(FieldError) {
    let reader = try FieldReader(json, "node facts")
    node = try reader.string("node")
    podCIDRs = try reader.strings("podCIDRs").map { text throws(FieldError) in
      guard let cidr = CIDR(text) else { throw FieldError("node facts", "podCIDRs", "'\(text)' is no CIDR") }
      return cidr
    }
    mtu = try reader.optional("mtu") { field throws(FieldError) in Int(try reader.integer(field)) }
  }
}

/// The paths of the agent's local API that more than one program names.
public enum AgentPath {
  /// `POST`, body an `EndpointRecord`: answered 200 `{"programmed":true}` once a new pod's packets are filtered and
  /// routed; anything else carries `{"error":"…"}`.
  public static let endpoints = "/v1/endpoints"
  /// `GET`: 200 while the agent serves.
  public static let health = "/v1/healthz"

  /// `DELETE`: 200 when the agent has forgotten the endpoint, also when it never knew it.
  public static func endpoint(containerID: String, interfaceName: String) -> String {
    "\(endpoints)/\(percentEncoded(containerID))/\(percentEncoded(interfaceName))"
  }

  /// Everything outside RFC 3986's unreserved characters as %XX: an interface name may hold any byte but `/`, `:` and
  /// white space.
  static func percentEncoded(_ text: String) -> String {
    var encoded = ""
    for byte in text.utf8 {
      switch byte {
      case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
        UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "."), UInt8(ascii: "_"),
        UInt8(ascii: "~"):
        encoded.unicodeScalars.append(Unicode.Scalar(byte))
      default: encoded += (byte < 16 ? "%0" : "%") + String(byte, radix: 16, uppercase: true)
      }
    }
    return encoded
  }
}
