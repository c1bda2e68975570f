import LocalAPI
import Netlink
import NetworkTypes

/// An address of a pod, and what is known of the subnet it is from.
struct PodAddress: Hashable {
  let address: IPAddress
  /// Of the subnet.
  let prefixLength: Int
  let gateway: IPAddress?

  init(_ address: IPAddress, prefixLength: Int, gateway: IPAddress?) {
    (self.address, self.prefixLength, self.gateway) = (address, prefixLength, gateway)
  }

  var family: IPFamily { address.family }
  var subnet: CIDR { CIDR(address, prefixLength: prefixLength) ?? CIDR(host: address) }
}

/// A route of a pod, besides those that its shape makes.
struct PodRoute: Hashable {
  let destination: CIDR
  /// nil: the shape's.
  var gateway: IPAddress?
  /// `mtu`, `advmss`, `priority`, `table` and `scope` of specification 1.1.
  var mtu: Int?
  var segmentSize: Int?
  var priority: UInt32?
  var table: UInt32?
  var scope: UInt8?

  init(_ destination: CIDR, gateway: IPAddress? = nil) { (self.destination, self.gateway) = (destination, gateway) }

  /// `{"dst", "gw", "mtu", "advmss", "priority", "table", "scope"}`; the field's name where one cannot be understood.
  init(_ json: JSONValue) throws(PodRouteFault) {
    let object = json.objectValue ?? JSONObject()
    let text = object["dst"]?.stringValue ?? ""
    guard let destination = CIDR(text) else { throw PodRouteFault(field: "dst", value: text, expected: "CIDR") }
    self.init(destination)
    if let text = object["gw"]?.stringValue, !text.isEmpty {
      guard let address = IPAddress(text), address.family == destination.family else {
        throw PodRouteFault(field: "gw", value: text, expected: "address of that family")
      }
      gateway = address
    }
    mtu = try Self.number("mtu", of: object, UInt16.self).map { Int($0) }
    segmentSize = try Self.number("advmss", of: object, UInt16.self).map { Int($0) }
    priority = try Self.number("priority", of: object, UInt32.self)
    table = try Self.number("table", of: object, UInt32.self)
    scope = try Self.number("scope", of: object, UInt8.self)
  }

  private static func number<Number: FixedWidthInteger>(
    _ key: String, of object: JSONObject, _ type: Number.Type
  ) throws(PodRouteFault) -> Number? {
    guard let value = object[key], !value.isNull else { return nil }
    guard let number = value.intValue.flatMap({ Number(exactly: $0) }) else {
      throw PodRouteFault(field: key, value: value.serialized(), expected: "number of its range")
    }
    return number
  }

  /// As the kernel takes it.
  func route(via gateway: IPAddress?, interfaceIndex: Int) -> Route {
    var route = Route(
      destination: destination, gateway: gateway, interfaceIndex: interfaceIndex, table: table ?? Route.mainTable,
      scope: scope, mtu: mtu, priority: priority)
    route.segmentSize = segmentSize
    return route
  }

  func json(via gateway: IPAddress?, version: SpecVersion) -> JSONValue {
    var object: JSONObject = ["dst": .string(destination.description)]
    object["gw"] = gateway.map { .string($0.description) }
    guard version >= .v1_1_0 else { return .object(object) }
    object["mtu"] = mtu.map { .int(Int64($0)) }
    object["advmss"] = segmentSize.map { .int(Int64($0)) }
    object["priority"] = priority.map { .int(Int64($0)) }
    object["table"] = table.map { .int(Int64($0)) }
    object["scope"] = scope.map { .int(Int64($0)) }
    return .object(object)
  }
}

struct PodRouteFault: Error {
  let field: String
  let value: String
  let expected: String
}

/// What a pod gets: its addresses, routes and names, out of our own store or by another plugin.
struct PodNetwork {
  var addresses: [PodAddress] = []
  var routes: [PodRoute] = []
  var dns: JSONObject?

  var families: Set<IPFamily> { Set(addresses.map(\.family)) }
}
