import NetworkTypes

/// Why an end of an explained flow cannot be read: the text and what is wrong with it.
struct TargetError: Error, Hashable, CustomStringConvertible {
  let description: String

  init(_ text: String, _ reason: String) { description = "'\(text)': \(reason)" }
}

/// Protocols that `dpctl explain` can ask about.
enum ExplainProtocol: String, CaseIterable {
  case tcp, udp, sctp, icmp

  /// ICMPv6 is meant wherever the addresses are IPv6.
  init?(_ text: Substring) {
    let text = text.lowercased()
    self.init(rawValue: text == "icmpv6" || text == "icmp6" ? "icmp" : text)
  }

  var hasPorts: Bool { self != .icmp }
}

/// One end of an explained flow as it is typed:
///
///     shop/db-0:5432        a pod (or a Service, where no pod has the name); without a namespace the default one
///     svc/shop/api:80       a Service
///     10.0.0.1:80/udp       an address; IPv6 with a port in brackets, [fd00::1]:53/udp
///     shop/db-0/icmp        no port; the namespace must be written
///     world, host           any address outside the cluster; this node's own processes (as a source only)
struct ExplainTarget: Hashable {
  /// `ns/name`, `svc/ns/name`, an address without brackets, `world` or `host`.
  var name: String
  var port: Port?
  /// nil where none is written.
  var transport: ExplainProtocol?

  init(_ text: String, defaultNamespace: String) throws(TargetError) {
    let (host, tail) = try Self.split(text)
    var components = host.components
    var rest = tail
    // Without a port the protocol stands behind the last slash of what can be nothing else.
    if rest == nil, let last = components.last, components.count > Self.nameComponents(components) {
      components.removeLast()
      rest = (nil, last)
    }
    name = try Self.name(components, isAddress: host.isAddress, in: text, defaultNamespace)
    port = nil
    if let written = rest?.port {
      guard written.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }),
        let port = Int(written).flatMap({ Port($0) })
      else { throw TargetError(text, "'\(written)' is no port: a number from 1 to 65535") }
      self.port = port
    }
    transport = nil
    if let written = rest?.transport {
      guard let transport = ExplainProtocol(written) else {
        throw TargetError(text, "'\(written)' is no protocol: tcp, udp, sctp or icmp")
      }
      self.transport = transport
    }
  }

  private typealias Host = (components: [Substring], isAddress: Bool)
  private typealias Rest = (port: Substring?, transport: Substring?)

  /// Cuts off what follows a colon that is not part of an address, or a bracket.
  private static func split(_ text: String) throws(TargetError) -> (Host, Rest?) {
    if text.hasPrefix("[") {
      guard let end = text.firstIndex(of: "]") else { throw TargetError(text, "the bracket is not closed") }
      let address = text[text.index(after: text.startIndex)..<end]
      let tail = text[text.index(after: end)...]
      guard IPAddress(address)?.family == .v6 else { throw TargetError(text, "'\(address)' is no IPv6 address") }
      if tail.isEmpty { return (([address], true), nil) }
      if tail.hasPrefix("/") { return (([address], true), (nil, tail.dropFirst())) }
      guard tail.hasPrefix(":") else { throw TargetError(text, "':PORT' is expected behind the bracket") }
      return (([address], true), portAndProtocol(tail.dropFirst()))
    }
    let head = text.prefix { $0 != "/" }
    if IPAddress(head)?.family == .v6 {
      let tail = text[head.endIndex...]
      return (([head], true), tail.isEmpty ? nil : (nil, tail.dropFirst()))
    }
    let parts = text.split(separator: ":", omittingEmptySubsequences: false)
    guard parts.count <= 2 else {
      throw TargetError(text, "an IPv6 address with a port is written [fd00::1]:80")
    }
    let components = parts[0].split(separator: "/", omittingEmptySubsequences: false)
    let host = (components, IPAddress(components[0]) != nil)
    return (host, parts.count == 2 ? portAndProtocol(parts[1]) : nil)
  }

  private static func portAndProtocol(_ text: Substring) -> Rest {
    let parts = text.split(separator: "/", maxSplits: 1, omittingEmptySubsequences: false)
    return (parts[0], parts.count == 2 ? parts[1] : nil)
  }

  /// How many components the name takes: what is behind them is a protocol.
  private static func nameComponents(_ components: [Substring]) -> Int {
    if IPAddress(components[0]) != nil || ["world", "host"].contains(components[0]) { return 1 }
    return isService(components) ? 3 : 2
  }

  private static func isService(_ components: [Substring]) -> Bool { components.count >= 3 && components[0] == "svc" }

  private static func name(
    _ components: [Substring], isAddress: Bool, in text: String, _ defaultNamespace: String
  ) throws(TargetError) -> String {
    if isAddress {
      guard components.count == 1, let address = IPAddress(components[0]) else {
        throw TargetError(text, "an address has no name behind it")
      }
      return address.description
    }
    if components == ["world"] || components == ["host"] { return String(components[0]) }
    for component in components {
      guard !component.isEmpty, component.utf8.allSatisfy(isNameByte) else {
        throw TargetError(text, component.isEmpty ? "a part is empty" : "'\(component)' is no Kubernetes name")
      }
    }
    if components.count == 1, components[0].utf8.allSatisfy({ $0 == UInt8(ascii: ".") || $0 < UInt8(ascii: ":") }),
      components[0].contains(".")
    {
      throw TargetError(text, "no IPv4 address")
    }
    switch components.count {
    case 1: return "\(defaultNamespace)/\(components[0])"
    case 2: return components.joined(separator: "/")
    case 3 where isService(components): return components.joined(separator: "/")
    default: throw TargetError(text, "write NAMESPACE/NAME, svc/NAMESPACE/NAME or an address")
    }
  }

  private static func isNameByte(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"),
      UInt8(ascii: "."):
      true
    default: false
    }
  }
}

extension ExplainTarget {
  /// What to ask for, of both ends: the destination says protocol (else TCP) and port; a source's port plays no part in
  /// policy and is ignored, so that lines of `dpctl monitor` can be asked about as they are.
  static func flow(
    from source: String, to destination: String, defaultNamespace: String
  ) throws(TargetError) -> [(key: String, value: String?)] {
    let from = try ExplainTarget(source, defaultNamespace: defaultNamespace)
    let to = try ExplainTarget(destination, defaultNamespace: defaultNamespace)
    if from.name.hasPrefix("svc/") { throw TargetError(source, "a Service sends nothing: name a pod or an address") }
    if to.name == "host" {
      throw TargetError(destination, "'host' is a source; as a destination name one of the node's addresses")
    }
    let transport = to.transport ?? .tcp
    if transport.hasPorts, to.port == nil {
      throw TargetError(destination, "the port is missing: \(bracketed(to.name)):PORT (or \(bracketed(to.name))/icmp)")
    }
    if !transport.hasPorts, to.port != nil { throw TargetError(destination, "\(transport.rawValue) has no ports") }
    return [
      ("source", from.name), ("destination", to.name), ("protocol", transport.rawValue),
      ("port", to.port.map(\.description)),
    ]
  }

  private static func bracketed(_ name: String) -> String { name.contains(":") ? "[\(name)]" : name }
}
