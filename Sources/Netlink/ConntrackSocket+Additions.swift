import CLinux
import Glibc
import NetworkTypes

extension ConntrackSocket {
  /// Has the kernel track a flow that it has not seen begin, and translate it where its tuples say so. What it tracked
  /// under one of the tuples is forgotten: it saw the flow from between two other translations.
  public func add(_ flow: ConntrackAddition) throws(NetlinkError) {
    let message = Self.additionMessage(flow)
    let object = flow.original.description
    var attempts = 0
    while true {
      do throws(NetlinkError) { return try socket.acknowledge(message, operation: "add flow", object: object) } catch {
        attempts += 1
        // Its packets may be quicker than we are, more than once.
        guard error.errno == EEXIST, attempts < 10 else { throw error }
      }
      for tuple in [flow.original, flow.reply] { try forget(tuple) }
    }
  }

  /// Deletes the flow that has this tuple in either direction.
  private func forget(_ tuple: ConntrackTuple) throws(NetlinkError) {
    var message = Self.builder(IPCTNL_MSG_CT_DELETE.rawValue, tuple.source.family)
    message.appendTuple(CTA_TUPLE_ORIG.rawValue, tuple)
    do throws(NetlinkError) {
      try socket.acknowledge(message, operation: "delete flow", object: tuple.description)
    } catch {
      if error.errno != ENOENT { throw error }
    }
  }

  static func additionMessage(_ flow: ConntrackAddition) -> NetlinkMessageBuilder {
    var message = builder(IPCTNL_MSG_CT_NEW.rawValue, flow.original.source.family, flags: NLM_F_CREATE | NLM_F_EXCL)
    message.appendTuple(CTA_TUPLE_ORIG.rawValue, flow.original)
    // Before translation, which the kernel applies to it itself.
    message.appendTuple(CTA_TUPLE_REPLY.rawValue, flow.original.reversed)
    if flow.reply != flow.original.reversed {
      // Both ends, also the one that stays: the kernel would look for a free port itself.
      message.appendTranslation(CTA_NAT_DST.rawValue, flow.reply.source, flow.reply.sourcePort)
      message.appendTranslation(CTA_NAT_SRC.rawValue, flow.reply.destination, flow.reply.destinationPort)
    }
    var status = ConntrackStatus.confirmed
    if flow.isAnswered { status |= ConntrackStatus.seenReply | ConntrackStatus.assured }
    message.attribute(CTA_STATUS.rawValue, bigEndian: status)
    message.attribute(CTA_TIMEOUT.rawValue, bigEndian: flow.timeout)
    if flow.original.protocolNumber == L4Protocol.tcp.rawValue {
      let state = flow.isAnswered ? ConntrackTCPState.established : ConntrackTCPState.synReceived
      message.nest(CTA_PROTOINFO.rawValue) { message in
        message.nest(CTA_PROTOINFO_TCP.rawValue) { message in
          message.attribute(CTA_PROTOINFO_TCP_STATE.rawValue, number: state)
          // IP_CT_TCP_FLAG_BE_LIBERAL, and the mask that it is of: nobody knows the windows.
          for type in [CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, CTA_PROTOINFO_TCP_FLAGS_REPLY] {
            message.attribute(type.rawValue, [0x08, 0x08])
          }
        }
      }
    }
    return message
  }
}

extension NetlinkMessageBuilder {
  fileprivate mutating func appendTuple(_ type: UInt32, _ tuple: ConntrackTuple) {
    let isV4 = tuple.source.family == .v4
    nest(type) { message in
      message.nest(CTA_TUPLE_IP.rawValue) {
        $0.attribute(isV4 ? CTA_IP_V4_SRC.rawValue : CTA_IP_V6_SRC.rawValue, address: tuple.source)
        $0.attribute(isV4 ? CTA_IP_V4_DST.rawValue : CTA_IP_V6_DST.rawValue, address: tuple.destination)
      }
      message.nest(CTA_TUPLE_PROTO.rawValue) {
        $0.attribute(CTA_PROTO_NUM.rawValue, number: tuple.protocolNumber)
        $0.attribute(CTA_PROTO_SRC_PORT.rawValue, bigEndian: tuple.sourcePort)
        $0.attribute(CTA_PROTO_DST_PORT.rawValue, bigEndian: tuple.destinationPort)
      }
    }
  }

  /// To this one address and port.
  fileprivate mutating func appendTranslation(_ type: UInt32, _ address: IPAddress, _ port: UInt16) {
    let isV4 = address.family == .v4
    nest(type) { message in
      for limit in isV4 ? [CTA_NAT_V4_MINIP, CTA_NAT_V4_MAXIP] : [CTA_NAT_V6_MINIP, CTA_NAT_V6_MAXIP] {
        message.attribute(limit.rawValue, address: address)
      }
      message.nest(CTA_NAT_PROTO.rawValue) {
        $0.attribute(CTA_PROTONAT_PORT_MIN.rawValue, bigEndian: port)
        $0.attribute(CTA_PROTONAT_PORT_MAX.rawValue, bigEndian: port)
      }
    }
  }
}
