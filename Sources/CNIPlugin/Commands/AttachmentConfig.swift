import LocalAPI
import NetworkTypes

/// What the configuration says about a new attachment, checked whole before anything is touched.
struct AttachmentConfig {
  enum Mode {
    case routed
    case bridge(BridgeSettings)

    var isBridge: Bool { if case .bridge = self { true } else { false } }
    /// VLANs that the pod may put tags of on its frames.
    var trunk: [ClosedRange<UInt16>] { if case .bridge(let settings) = self { settings.vlans.trunk } else { [] } }
  }

  let mode: Mode
  /// Bytes; nil: derive.
  let mtu: Int?
  let mac: MACAddress?
  let addresses: AddressPlan
  /// The configuration's, or the runtime's in its place.
  let dns: JSONObject?
  let portMappings: [PortMapping]
  let bandwidth: BandwidthLimit?

  /// What IPv6 needs, in bytes (RFC 8200).
  private static let smallestIPv6MTU = 1280

  init(_ config: Config) throws(CNIError) {
    let fields = ConfigFields(config.json)
    mode = try Self.mode(fields)
    if mode.isBridge, config.requiresAgent {
      throw .config(
        "requireAgent", "has to be false with mode 'bridge': between pods of a bridge no policy is asked for")
    }
    let mtu = try fields.integer("mtu", in: 0...65_535) ?? 0
    guard mtu == 0 || mtu >= 576 else { throw .config("mtu", "\(mtu) is below 576") }
    self.mtu = mtu == 0 ? nil : mtu

    let runtime = RuntimeConfig(try fields.object("runtimeConfig") ?? JSONObject())
    mac = try runtime.mac()
    portMappings = try runtime.portMappings()
    bandwidth = try runtime.bandwidth()
    let ownDNS = try fields.object("dns")
    dns = try runtime.object("dns") ?? ownDNS
    if mode.isBridge, let mapping = portMappings.first {
      throw .unsupported(
        "runtimeConfig.portMappings", "\(mapping)", "pods of a bridge have none; chain the plugin portmap behind")
    }
    addresses = try AddressPlan(config, runtime, reservesGateways: mode.isBridge)
    if case .own(let pools, _, _, _) = addresses { try requireMTU(for: Set(pools.map(\.family))) }
  }

  /// CHECK asks for it alone.
  static func mode(_ fields: ConfigFields) throws(CNIError) -> Mode {
    switch try fields.string("mode") ?? "routed" {
    case "routed": return .routed
    case "bridge": return .bridge(try BridgeSettings(fields))
    case let other: throw .unsupported("mode", "'\(other)'", "use 'routed' or 'bridge'")
    }
  }

  func requireMTU(for families: Set<IPFamily>) throws(CNIError) {
    guard let mtu, mtu < Self.smallestIPv6MTU, families.contains(.v6) else { return }
    throw .config("mtu", "\(mtu) is below \(Self.smallestIPv6MTU), which IPv6 needs")
  }
}
