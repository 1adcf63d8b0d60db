"""gRPC services of the controller: thin translations between the wire and `controller.farm`."""
