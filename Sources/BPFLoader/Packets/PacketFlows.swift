import DataplaneModel
import Netlink
import NetworkTypes

/// What the packet programs track. Each look costs what there is: not for the way from a change to the kernel.
public struct PacketFlows: Sendable {
  let maps: TrackingMaps

  /// Ends every flow of these addresses, whatever its protocol: another pod has them now.
  public func end(flowsOf addresses: Set<IPAddress>) throws(SystemError) {
    let ends = Set(addresses.map { AddressLayout($0) })
    func isMeant(_ key: TupleLayout) -> Bool { ends.contains(key.source) || ends.contains(key.destination) }
    try maps.flows.remove(try maps.flows.keys().filter(isMeant))
    try maps.attempts.remove(try maps.attempts.keys().filter(isMeant))
    try maps.translations.remove(try maps.translations.keys().filter(isMeant))
  }

  /// Ends UDP flows that go to these places as they are: those are Services' now, and the flows would go on untranslated for
  /// as long as their clients send. Flows that were translated have another tuple, and find by themselves that their
  /// backend has gone.
  public func end(datagramsTo places: Set<SocketAddress>) throws(SystemError) {
    let ends = Set(places.map { BackendLayout($0) })
    func isMeant(_ key: TupleLayout) -> Bool {
      key.proto == L4Protocol.udp.rawValue && (ends.contains(key.first) || ends.contains(key.second))
    }
    try maps.flows.remove(try maps.flows.keys().filter(isMeant))
    try maps.attempts.remove(try maps.attempts.keys().filter(isMeant))
  }
}
