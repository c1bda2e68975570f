import Netlink
import NetworkTypes

/// How a pod is joined to its node. `mode` of the configuration.
///
/// What an attachment has besides its pair of devices (`PodDevices`) goes with them, or is the network's and stays.
protocol Shape {
  var devices: PodDevices { get }

  /// The address of the node as the pod sees it, for one of the pod's; nil where it has none.
  func gateway(of address: PodAddress) -> IPAddress?
  /// As the pod and the result have it.
  func prefixLength(of address: PodAddress) -> Int
  /// With their gateways.
  func routes(_ network: PodNetwork) -> [(route: PodRoute, gateway: IPAddress?)]
  /// Devices of the node that the result names before the pair, and behind it.
  func sharedDevices(node: RouteSocket) throws -> (first: [Link], last: [Link])

  /// Builds everything, and leaves the host end down: nothing gets in or out before `open`. On an error the caller
  /// removes the pair, and with it all the rest.
  func attach(_ network: PodNetwork, mtu: Int, in namespace: NetworkNamespace, pod: RouteSocket, node: RouteSocket)
    throws
  /// Lets packets through, once somebody judges them; returns when the pod can send.
  func open(
    _ network: PodNetwork, in namespace: NetworkNamespace, pod: RouteSocket, node: RouteSocket
  ) throws
  /// What is missing of an attachment, nil when all is there; `routes` are those that the chain's result names.
  func fault(_ addresses: [IPAddress], routes: [CIDR], pod: RouteSocket, node: RouteSocket) throws -> String?
}

extension Shape {
  func sharedDevices(node: RouteSocket) throws -> (first: [Link], last: [Link]) { ([], []) }
}

extension AttachmentConfig.Mode {
  func shape(_ devices: PodDevices, network: String) -> any Shape {
    switch self {
    case .routed: RoutedShape(devices: devices)
    case .bridge(let settings): BridgeShape(devices: devices, settings: settings, network: network)
    }
  }
}
