import DataplaneModel
import NetworkTypes

/// `struct client`.
public struct ClientLayout: MapLayout {
  var v4 = AddressLayout()
  var v6 = AddressLayout()
  var flags: UInt32 = 0
  var pad: UInt32 = 0

  static let isHost: UInt32 = 1

  public init() {}
  public init(addresses: [IPAddress], isHost: Bool) {
    if let address = addresses.first(where: { $0.family == .v4 }) { v4 = AddressLayout(address) }
    if let address = addresses.first(where: { $0.family == .v6 }) { v6 = AddressLayout(address) }
    flags = isHost ? Self.isHost : 0
  }
}

/// `struct peer_key`.
public struct PeerKeyLayout: MapLayout {
  var cookie: UInt64 = 0
  var peer = BackendLayout()
  var pad: UInt32 = 0

  public init() {}
  public init(cookie: UInt64, _ peer: SocketAddress) {
    self.cookie = cookie
    self.peer = BackendLayout(peer)
  }
}

/// `struct connection`.
public struct ConnectionLayout: MapLayout {
  var told = BackendLayout()
  var real = BackendLayout()

  public init() {}
}
